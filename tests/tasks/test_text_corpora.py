"""Texts from files of each format, their vocabularies, and the segments of a batch."""

import gzip

import pytest
import torch

from replib.tasks import text_corpora
from replib.tasks.text import Text
from replib.tasks.text_corpora import LINE_END, UNKNOWN, Vocabulary, load_corpus, load_splits

LINES = {"train": " the cat sat \n\n the dog ran \n", "valid": " the cat ran \n", "test": "a dog\n"}
TEXT = "To be, or not to be: that is the question.\n" * 40


@pytest.fixture
def texts(tmp_path, monkeypatch):
    monkeypatch.setenv("REPLIB_TEXTS", str(tmp_path))
    return tmp_path


def write(folder, name, text):
    folder.mkdir(parents=True, exist_ok=True)
    content = text if isinstance(text, bytes) else text.encode()
    (folder / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)


@pytest.mark.parametrize("name", ["wiki.{}.tokens", "wiki.{}.tokens.gz", "ptb.{}.txt", "{}.txt.gz"])
def test_splits_are_read_from_the_files_people_have(texts, name):
    for split, lines in LINES.items():
        write(texts / "some", name.format(split), lines)
    assert [part.decode() for part in load_splits(texts / "some")] == [*LINES.values()]
    text = Text(corpus="some", level="word", seq_len=2).text
    # Each line has an end, an empty one too; by how often, then by name.
    assert text.vocabulary.tokens == (UNKNOWN, LINE_END, "the", "cat", "dog", "ran", "sat")
    assert text.vocabulary.pieces(text.train.ids.tolist()) == [
        *f"{LINE_END} the cat sat {LINE_END} {LINE_END} the dog ran {LINE_END}".split()
    ]
    assert text.vocabulary.pieces(text.test.ids.tolist()) == [LINE_END, UNKNOWN, "dog", LINE_END]
    assert (text.test.n_bytes, text.test.n_characters) == (6, 6)


def test_one_file_is_cut_at_90_and_95_percent_between_characters(texts, monkeypatch):
    write(texts / "play", "input.txt.gz", TEXT)
    parts = load_splits(texts / "play")
    assert b"".join(parts).decode() == TEXT
    assert [len(part) for part in parts] == [int(0.9 * len(TEXT)), int(0.95 * len(TEXT)) - 1548, 86]
    accents = "é" * 1001  # 2002 bytes, cut at 1801.8 and 1901.9
    write(texts / "accents", "some.txt", accents)
    assert [len(part.decode()) for part in load_splits(texts / "accents")] == [900, 50, 51]
    torn = load_splits(texts / "accents", whole_characters=False)
    assert [len(part) for part in torn] == [1801, 100, 101]
    monkeypatch.setattr(text_corpora, "ENWIK8_BYTES", 2002)
    write(texts / "enwik8", "enwik8", accents)
    corpus = Text(corpus="enwik8", level="byte", seq_len=4).text
    assert (len(corpus.vocabulary), len(corpus.train.ids)) == (256, 1 + 1801)
    assert (corpus.train.n_bytes, corpus.train.n_characters) == (1801, None)


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("input.txt.gz", None, "input.txt.gz cannot be read .*: copy it again"),
        ("input.txt", b" \n", "input.txt is empty: copy it again"),
        ("input.txt", b"word", "has 4 bytes, too few to be cut"),
        ("enwik8", TEXT.encode(), "has 1,720 bytes, enwik8 has 100,000,000: copy it again"),
        ("wiki.valid.tokens", TEXT.encode(), "has no wiki.train.tokens, plain or .gz: put it"),
        ("input.pdf", b"%PDF", "has no text: put wiki.train.tokens, .* or one .txt file"),
        ("input.txt", b"caf\xe9\n" * 40, "line 1 of the train part of .* is not UTF-8: convert it"),
        ("input.txt", b"a\0\n" * 40, "holds bytes of 0, which no text does: use level 'byte'"),
    ],
)
def test_torn_and_foreign_files_are_refused_with_the_remedy(texts, name, content, message):
    if content is None:  # torn
        content = gzip.compress(TEXT.encode())[:-20]
        (texts / "some").mkdir()
        (texts / "some" / name).write_bytes(content)
    else:
        write(texts / "some", name, content)
    with pytest.raises(ValueError, match=message):
        load_corpus(texts / "some", "character")


def test_texts_that_are_not_at_hand_are_named(texts, monkeypatch):
    assert f"there is no folder {texts}/ptb" in Text(corpus="ptb").missing_data()
    monkeypatch.delenv("REPLIB_TEXTS")
    assert "set REPLIB_TEXTS to a folder that has enwik8" in Text(corpus="enwik8").missing_data()
    assert Text().missing_data() is None  # Shakespeare is there


@pytest.mark.parametrize("level", ["word", "byte", "character"])
def test_a_vocabulary_gives_back_what_it_encodes(level):
    text = "be or not\nto be\n"
    vocabulary = Vocabulary.of(level, text)
    ids = vocabulary.encode(text).tolist()
    assert max(ids) < len(vocabulary)
    assert vocabulary.decode(ids) == text
    other = vocabulary.encode("be √\n").tolist()
    assert (level == "byte") == (0 not in other)
    assert vocabulary.pieces([vocabulary.line_end]) == [LINE_END if level == "word" else "\n"]


def test_the_streams_of_a_batch_go_through_the_text_in_segments():
    task, batch_size = Text(seq_len=50), 3
    n = task.n_segments(batch_size)
    ids = task.text.train.ids.long()
    batches = [task.batch_at(step, batch_size, 5, "cpu") for step in range(4)]
    for before, after in zip(batches, batches[1:], strict=False):
        assert torch.equal(before.targets[:, :-1], before.inputs[0][:, 1:])
        assert torch.equal(before.targets[:, -1], after.inputs[0][:, 0])
    whole = torch.cat([one.targets for one in batches], dim=1)
    rows = ids.unfold(0, 40, 1)
    starts = [int((rows == row[:40]).all(1).nonzero()[0]) for row in whole]
    assert all(torch.equal(ids[i : i + 200], row) for i, row in zip(starts, whole, strict=True))
    assert starts[0] <= 50 and len({b - a for a, b in zip(starts, starts[1:], strict=False)}) == 1
    assert task.segment_at(n + 2, batch_size) == 2
    other = task.batch_at(n, batch_size, 5, "cpu"), task.batch_at(0, batch_size, 6, "cpu")
    assert not any(torch.equal(batches[0].targets, one.targets) for one in other)
    last = task.batch_at(n - 1, batch_size, 5, "cpu")
    assert last.targets.shape == (batch_size, 50)


def test_what_is_held_out_is_the_validation_text_in_its_order():
    task = Text(seq_len=50)
    batches = [*task.held_out(4, 3, torch.Generator())]
    found = torch.cat([one.targets.flatten() for one in batches])
    assert torch.equal(found, task.text.valid.ids[1:601].long())


def test_a_text_too_short_for_a_batch_is_said(texts):
    write(texts / "play", "input.txt", TEXT)
    with pytest.raises(ValueError, match="1,548 tokens to train on, less than a batch of 20"):
        Text(corpus="play", seq_len=100).n_segments(20)


@pytest.mark.parametrize("changes", [{"level": "syllable"}, {"seq_len": 0}])
def test_values_that_cannot_be_are_refused(changes):
    with pytest.raises(ValueError, match="use "):
        Text(**changes)
