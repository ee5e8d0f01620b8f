"""Images to generate: the handwritten digits of the repository, and MNIST and CIFAR-10 from files.

n images of height h, width w and c channels are (n, h, w, c), uint8; labels (n,), int64.
"""

import gzip
import os
import struct
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

DATA_FOLDER = Path(__file__).parents[2] / "data"
# Facts that belong to the repository, as the published figures do: no setting moves this file.
DIGITS_FILE = DATA_FOLDER / "digits.txt"
LEVEL_CODES = b"0123456789abcdefg"  # of the grey levels 0 to 16 in that file
N_CLASSES = 10  # of all three data sets


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """What is known of a data set before it is read.

    Attributes:
        shape: (h, w, c) of an image.
        n_levels: values that a channel of a pixel takes, 0 to n_levels - 1.
        remedy: how a reader gets its files into `images_folder()`; empty where they are there.
    """

    title: str
    shape: tuple[int, int, int]
    n_levels: int
    n_train: int
    n_test: int
    remedy: str = ""


DATASETS = {
    # The images come in 14 forms of some 130 digits, each in the same order and so, presumably, by
    # one writer. Those of the last two are the test: as in MNIST, no writer is on both sides.
    "digits": Dataset(
        title="8 x 8 handwritten digits (Alpaydin & Kaynak 1998)",
        shape=(8, 8, 1),
        n_levels=17,
        n_train=1545,
        n_test=252,
    ),
    "mnist": Dataset(
        title="MNIST (LeCun, Cortes & Burges 1998)",
        shape=(28, 28, 1),
        n_levels=256,
        n_train=60_000,
        n_test=10_000,
        remedy="download train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, "
        "t10k-images-idx3-ubyte.gz and t10k-labels-idx1-ubyte.gz from "
        "https://ossci-datasets.s3.amazonaws.com/mnist/ into the folder mnist",
    ),
    "cifar10": Dataset(
        title="CIFAR-10 (Krizhevsky 2009)",
        shape=(32, 32, 3),
        n_levels=256,
        n_train=50_000,
        n_test=10_000,
        remedy="unpack https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz, which makes the "
        "folder cifar-10-batches-bin",
    ),
}


class Images(NamedTuple):
    """A data set: images (n, h, w, c) and labels (n,) to train on, and others to test on."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


def images_folder() -> Path:
    """Where downloaded data sets lie: `REPLIB_IMAGES`, else `data/images/` of the repository."""
    return Path(os.environ.get("REPLIB_IMAGES") or DATA_FOLDER / "images").expanduser()


def dataset_named(name: str) -> Dataset:
    """The description of a data set.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in DATASETS:
        raise ValueError(f"unknown images {name!r}: use {', '.join(DATASETS)}")
    return DATASETS[name]


def load_images(name: str, device: torch.device | str = "cpu") -> Images:
    """A data set of `DATASETS`, read once for each device.

    Example:
        >>> load_images("digits").train.shape
        torch.Size([1545, 8, 8, 1])

    Raises:
        ValueError: there is none of that name, or a file of it is missing, damaged or foreign; the
            message names the file and the remedy.
    """
    dataset_named(name)
    return _load(name, images_folder(), torch.device(device))


@lru_cache(maxsize=4)
def _load(name: str, folder: Path, device: torch.device) -> Images:
    if device.type != "cpu":
        return Images(*(x.to(device) for x in _load(name, folder, torch.device("cpu"))))
    return READERS[name](DATASETS[name], folder)


def read_digits(dataset: Dataset, _: Path) -> Images:
    """The digits of `data/digits.txt`: a line an image, "7 03fg..." being its digit and pixels."""
    try:
        lines = DIGITS_FILE.read_bytes().splitlines()
        rows = [line.split() for line in lines if not line.startswith(b"#")]
        labels, pixels = (b"".join(column) for column in zip(*rows, strict=True))
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(_damaged(DIGITS_FILE, "missing or torn")) from error
    n, size = dataset.n_train + dataset.n_test, dataset.shape[0] * dataset.shape[1]
    known = not labels.translate(None, LEVEL_CODES[:N_CLASSES])
    known &= not pixels.translate(None, LEVEL_CODES)
    if not known or len(labels) != n or {len(row[1]) for row in rows} != {size}:
        raise ValueError(_damaged(DIGITS_FILE, f"not {n} images of {size} pixels"))
    code = bytes.maketrans(LEVEL_CODES, bytes(range(len(LEVEL_CODES))))
    images = _tensor(pixels.translate(code), n, *dataset.shape)
    labels = _tensor(labels.translate(code), n).long()
    split = dataset.n_train
    return Images(images[:split], labels[:split], images[split:], labels[split:])


def read_mnist(dataset: Dataset, folder: Path) -> Images:
    """MNIST's four idx files, plain or packed with gzip; of Fashion-MNIST, which is alike, too."""
    found = []
    for part, n in (("train", dataset.n_train), ("t10k", dataset.n_test)):
        for kind, dims in (("images-idx3", (n, *dataset.shape[:2])), ("labels-idx1", (n,))):
            found.append(_read_idx(folder / "mnist" / f"{part}-{kind}-ubyte", dims, dataset))
    train, train_labels, test, test_labels = found
    return Images(train[..., None], train_labels, test[..., None], test_labels)


def _read_idx(path: Path, dims: tuple[int, ...], dataset: Dataset) -> Tensor:
    """An idx file of unsigned bytes: the magic number 0 0 8 and the number of dimensions, each of
    them as four bytes with the highest first, then the values."""
    header = struct.pack(f">4B{len(dims)}I", 0, 0, 8, len(dims), *dims)
    content = _content(path, len(header) + int(np.prod(dims)), dataset)
    if content[:4] != header[:4]:
        what = f"no idx file of bytes in {len(dims)} dimensions, its first are {content[:4].hex()}"
        raise ValueError(_damaged(path, what, dataset))
    if content[: len(header)] != header:
        found = struct.unpack(f">{len(dims)}I", content[4 : len(header)])
        raise ValueError(_damaged(path, f"of the size {found} in place of {dims}", dataset))
    values = _tensor(content[len(header) :], *dims)
    return values if len(dims) > 1 else _labels(values, path, dataset)


def read_cifar10(dataset: Dataset, folder: Path) -> Images:
    """CIFAR-10's binary version: five files to train on and one to test on, of records that are a
    byte for the label and h·w bytes for each of red, green and blue."""
    folder, n_files = folder / "cifar-10-batches-bin", 5
    names = [f"data_batch_{i + 1}.bin" for i in range(n_files)]
    counts = [dataset.n_train // n_files] * n_files
    parts = [_read_records(folder / n, c, dataset) for n, c in zip(names, counts, strict=True)]
    images, labels = (torch.cat(column) for column in zip(*parts, strict=True))
    return Images(
        images, labels, *_read_records(folder / "test_batch.bin", dataset.n_test, dataset)
    )


def _read_records(path: Path, n: int, dataset: Dataset) -> tuple[Tensor, Tensor]:
    h, w, c = dataset.shape
    records = _tensor(_content(path, n * (1 + h * w * c), dataset), n, 1 + h * w * c)
    planes = records[:, 1:].reshape(n, c, h, w)
    images = planes.permute(0, 2, 3, 1).contiguous()  # (n, h, w, c)
    return images, _labels(records[:, 0], path, dataset)


READERS = {"digits": read_digits, "mnist": read_mnist, "cifar10": read_cifar10}


def _labels(values: Tensor, path: Path, dataset: Dataset) -> Tensor:
    if values.max() >= N_CLASSES:
        raise ValueError(_damaged(path, f"damaged, it has a label {int(values.max())}", dataset))
    return values.long()


def _content(path: Path, n_bytes: int, dataset: Dataset) -> bytes:
    """The n bytes of a file, or of the one beside it that gzip has packed."""
    packed = path.with_name(f"{path.name}.gz")
    try:
        with path.open("rb") if path.exists() else gzip.open(packed) as file:
            content = file.read(n_bytes + 1)
    except FileNotFoundError as error:
        raise ValueError(_damaged(path, "missing", dataset)) from error
    except (OSError, EOFError, zlib.error) as error:
        path = path if path.exists() else packed
        raise ValueError(_damaged(path, f"damaged ({error})", dataset)) from error
    if len(content) != n_bytes:
        short = f"{len(content)} bytes long, not {n_bytes}"
        problem = short if len(content) < n_bytes else f"longer than {n_bytes} bytes"
        raise ValueError(_damaged(path, problem, dataset))
    return content


def _damaged(path: Path, problem: str, dataset: Dataset | None = None) -> str:
    """What is wrong with a file, and what to do about it."""
    if dataset is None:
        return f"{path} is {problem}: restore it with 'git checkout data/{path.name}'"
    folder = images_folder()
    return f"{path} is {problem}: in {folder} (or set REPLIB_IMAGES), {dataset.remedy}"


def _tensor(content: bytes, *shape: int) -> Tensor:
    return torch.from_numpy(np.frombuffer(content, dtype=np.uint8).copy()).view(shape)
