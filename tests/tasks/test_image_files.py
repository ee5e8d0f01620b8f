"""Images are read as their formats say, and what is no such file is refused with the remedy."""

import gzip
import struct
from dataclasses import replace

import pytest
import torch

from replib.tasks import image_files
from replib.tasks.image_files import DATASETS, load_images, read_cifar10, read_digits, read_mnist

SMALL = {
    "mnist": replace(DATASETS["mnist"], n_train=7, n_test=3, shape=(4, 5, 1)),
    "cifar10": replace(DATASETS["cifar10"], n_train=10, n_test=3, shape=(4, 5, 3)),
}
READERS = {"mnist": read_mnist, "cifar10": read_cifar10}
ONE_FILE = {
    "mnist": "mnist/t10k-images-idx3-ubyte",
    "cifar10": "cifar-10-batches-bin/test_batch.bin",
}


def level(part, i, y, x, channel=0):
    """A formula for the level of a pixel, so that every byte out of place shows."""
    return (101 * part + 37 * i + 11 * y + 3 * x + 29 * channel) % 256


def expected(part, n, h, w, c):
    return torch.tensor(
        [
            [[[level(part, i, y, x, k) for k in range(c)] for x in range(w)] for y in range(h)]
            for i in range(n)
        ],
        dtype=torch.uint8,
    )


def write_mnist(folder, packed=False):
    folder = folder / "mnist"
    folder.mkdir()
    for part, (name, n) in enumerate((("train", 7), ("t10k", 3))):
        pixels = expected(part, n, 4, 5, 1).numpy().tobytes()
        labels = bytes((part + i) % 10 for i in range(n))
        files = {
            f"{name}-images-idx3-ubyte": b"\0\0\x08\x03" + struct.pack(">3I", n, 4, 5) + pixels,
            f"{name}-labels-idx1-ubyte": b"\0\0\x08\x01" + struct.pack(">I", n) + labels,
        }
        for file, content in files.items():
            if packed:
                (folder / f"{file}.gz").write_bytes(gzip.compress(content))
            else:
                (folder / file).write_bytes(content)


def write_cifar10(folder):
    folder = folder / "cifar-10-batches-bin"
    folder.mkdir()
    names = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
    for part, name in enumerate(names):
        n = 3 if part == 5 else 2
        records = b""
        for i in range(n):
            planes = [level(part, i, y, x, k) for k in range(3) for y in range(4) for x in range(5)]
            records += bytes([(part + i) % 10, *planes])
        (folder / name).write_bytes(records)


WRITERS = {"mnist": write_mnist, "cifar10": write_cifar10}


def test_digits_are_those_of_the_source():
    """Number of images of each digit as the UCI repository gives it, and the sum of all levels as
    scikit-learn's copy has it."""
    digits = load_images("digits")
    labels = torch.cat([digits.train_labels, digits.test_labels])
    levels = torch.cat([digits.train, digits.test])
    assert labels.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert levels.shape == (1797, 8, 8, 1)
    assert levels.dtype == torch.uint8
    assert (levels.min(), levels.max()) == (0, 16)
    assert levels.sum() == 561718
    assert levels[0, 0, :, 0].tolist() == [0, 0, 5, 13, 9, 1, 0, 0]


def test_digits_are_split_between_two_forms():
    """Each form begins with the digits in order, three times over."""
    digits = load_images("digits")
    assert (len(digits.train), len(digits.test)) == (1545, 252)
    assert digits.test_labels[:15].tolist() == [*range(10), *range(5)]
    assert digits.train_labels[-4:].tolist() == [0, 8, 9, 8]


@pytest.mark.parametrize("packed", [False, True])
def test_mnist_is_read_from_idx_files(tmp_path, packed):
    write_mnist(tmp_path, packed)
    read = read_mnist(SMALL["mnist"], tmp_path)
    assert torch.equal(read.train, expected(0, 7, 4, 5, 1))
    assert torch.equal(read.test, expected(1, 3, 4, 5, 1))
    assert read.train_labels.tolist() == list(range(7))
    assert read.test_labels.tolist() == [1, 2, 3]


def test_cifar10_is_read_with_the_channels_of_a_pixel_together(tmp_path):
    write_cifar10(tmp_path)
    read = read_cifar10(SMALL["cifar10"], tmp_path)
    assert torch.equal(read.train, torch.cat([expected(part, 2, 4, 5, 3) for part in range(5)]))
    assert torch.equal(read.test, expected(5, 3, 4, 5, 3))
    assert read.train_labels.tolist() == [0, 1, 1, 2, 2, 3, 3, 4, 4, 5]
    assert read.test_labels.tolist() == [5, 6, 7]


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize(
    "damage, problem",
    [
        (lambda content: content[:-1], r"is \d+ bytes long, not \d+"),
        (lambda content: content + b"\0", r"is longer than \d+ bytes"),
        (lambda content: b"", "is 0 bytes long"),
        (None, "is missing"),
    ],
)
def test_a_torn_or_missing_file_is_refused_with_the_remedy(tmp_path, name, damage, problem):
    WRITERS[name](tmp_path)
    path = tmp_path / ONE_FILE[name]
    if damage:
        path.write_bytes(damage(path.read_bytes()))
    else:
        path.unlink()
    with pytest.raises(ValueError, match=problem) as raised:
        READERS[name](SMALL[name], tmp_path)
    assert str(path) in str(raised.value)
    assert "https://" in str(raised.value)


@pytest.mark.parametrize("damage", [lambda content: content[:-9], lambda content: b"torn" * 9])
def test_a_torn_archive_is_refused_with_the_remedy(tmp_path, damage):
    write_mnist(tmp_path, packed=True)
    path = tmp_path / "mnist" / "train-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match="damaged") as raised:
        read_mnist(SMALL["mnist"], tmp_path)
    assert str(path) in str(raised.value)


def test_an_archive_damaged_in_the_middle_is_refused(tmp_path):
    write_mnist(tmp_path, packed=True)
    path = tmp_path / "mnist" / "train-images-idx3-ubyte.gz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(bytes(content))
    with pytest.raises(ValueError, match="damaged"):
        read_mnist(SMALL["mnist"], tmp_path)


def test_an_idx_file_of_another_kind_or_size_is_refused(tmp_path):
    write_mnist(tmp_path)
    path = tmp_path / "mnist" / "t10k-images-idx3-ubyte"
    content = path.read_bytes()
    path.write_bytes(b"\0\0\x0d" + content[3:])  # 4-byte floats
    with pytest.raises(ValueError, match="no idx file of bytes in 3 dimensions.*00000d03"):
        read_mnist(SMALL["mnist"], tmp_path)
    path.write_bytes(content[:8] + struct.pack(">2I", 5, 4) + content[16:])
    with pytest.raises(ValueError, match=r"of the size \(3, 5, 4\) in place of \(3, 4, 5\)"):
        read_mnist(SMALL["mnist"], tmp_path)


@pytest.mark.parametrize("name", READERS)
def test_a_label_that_is_no_class_is_refused(tmp_path, name):
    WRITERS[name](tmp_path)
    path = tmp_path / ONE_FILE[name].replace("images-idx3", "labels-idx1")
    content = bytearray(path.read_bytes())
    content[-1 if name == "mnist" else 0] = 10
    path.write_bytes(bytes(content))
    with pytest.raises(ValueError, match="label 10"):
        READERS[name](SMALL[name], tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text[:-30],
        lambda text: text + "3 0\n",
        lambda text: text.replace("\n0 00", "\n0 0h", 1),
        lambda text: "",
        lambda text: text.replace("\n0 ", "\n", 1),
    ],
)
def test_a_damaged_digits_file_is_refused_with_the_remedy(tmp_path, monkeypatch, change):
    path = tmp_path / "digits.txt"
    path.write_text(change(image_files.DIGITS_FILE.read_text()))
    monkeypatch.setattr(image_files, "DIGITS_FILE", path)
    with pytest.raises(ValueError, match="git checkout data/digits.txt"):
        read_digits(DATASETS["digits"], tmp_path)


def test_the_folder_of_downloads_can_be_set(tmp_path, monkeypatch):
    monkeypatch.setenv("REPLIB_IMAGES", str(tmp_path))
    with pytest.raises(ValueError, match="missing") as raised:
        load_images("mnist")
    assert str(tmp_path / "mnist") in str(raised.value)
    monkeypatch.setitem(DATASETS, "mnist", SMALL["mnist"])
    write_mnist(tmp_path)
    assert load_images("mnist").train.shape == (7, 4, 5, 1)  # a failure is not remembered


def test_unknown_images_are_refused():
    with pytest.raises(ValueError, match="unknown images 'faces': use digits, mnist, cifar10"):
        load_images("faces")
