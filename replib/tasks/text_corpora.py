"""Texts to model, from files that a reader has, and vocabularies of their training part.

A corpus is a folder of `REPLIB_TEXTS`, whose files are as people have them, plain or .gz:

    wikitext-2, wikitext-103  wiki.train.tokens, wiki.valid.tokens, wiki.test.tokens
    ptb                       ptb.train.txt, ptb.valid.txt, ptb.test.txt
    enwik8                    enwik8, of 100,000,000 bytes
    any other                 train.txt, valid.txt, test.txt; or one .txt file

One file alone is cut into 90 % to train on, 5 % to validate on and 5 % to test on, as is usual with
enwik8. Tiny Shakespeare, the plays that Karpathy 2015 put together, is part of this repository.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from replib.tasks.text_files import content_of, corpus_folder, decoded

SHAKESPEARE = "shakespeare"
# A fact that belongs to the repository, as the published figures do: no setting moves this file.
SHAKESPEARE_FILE = Path(__file__).parents[2] / "data" / "shakespeare.txt.gz"
SPLITS = ("train", "valid", "test")
NAMES = ("wiki.{}.tokens", "wiki.{}.raw", "ptb.{}.txt", "{}.txt")  # of a file a split
ENWIK8, ENWIK8_BYTES = "enwik8", 100_000_000
SHARES = (0.90, 0.95)  # where one file is cut
LEVELS = ("word", "byte", "character")
UNKNOWN, LINE_END = "<unk>", "<eos>"
N_BYTES = 256


def corpus_path(corpus: str) -> Path:
    """Where a corpus is: the file of Tiny Shakespeare, else what `corpus_folder` says.

    Raises:
        ValueError: as `corpus_folder`.
    """
    if corpus == SHAKESPEARE:
        return SHAKESPEARE_FILE
    files = ENWIK8 if corpus == ENWIK8 else "its train, valid and test files"
    return corpus_folder(corpus, files)


def load_splits(path: Path, *, whole_characters: bool = True) -> tuple[bytes, ...]:
    """The bytes to train on, to validate on and to test on.

    Args:
        path: a folder of files as above, or one file.
        whole_characters: whether one file is cut between two characters of UTF-8, not within one.

    Raises:
        ValueError: files are missing, torn or empty; the message names the file and the remedy.
    """
    if path.is_dir():
        for name in NAMES:
            found = [_found(path, name.format(split)) for split in SPLITS]
            if all(found):
                return tuple(_content(one) for one in found)
            if any(found):
                missing = name.format(SPLITS[found.index(None)])
                raise ValueError(f"{path} has no {missing}, plain or .gz: put it there")
        path = _found(path, ENWIK8) or _only_text(path)
    content = _content(path)
    if path.name in (ENWIK8, f"{ENWIK8}.gz") and len(content) != ENWIK8_BYTES:
        raise ValueError(
            f"{path} has {len(content):,} bytes, enwik8 has {ENWIK8_BYTES:,}: copy it again"
        )
    first, second = (int(share * len(content)) for share in SHARES)
    if whole_characters:
        first, second = (_character_start(content, place) for place in (first, second))
    parts = content[:first], content[first:second], content[second:]
    if not all(parts):
        raise ValueError(f"{path} has {len(content)} bytes, too few to be cut: use a longer text")
    return parts


def _found(folder: Path, name: str) -> Path | None:
    return next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)


def _only_text(folder: Path) -> Path:
    found = sorted({*folder.glob("*.txt"), *folder.glob("*.txt.gz")})
    if len(found) == 1:
        return found[0]
    names = ", ".join(NAMES).format(*["train"] * len(NAMES))
    has = f"{len(found)} .txt files" if found else "no text"
    raise ValueError(
        f"{folder} has {has}: put {names} and so on there, plain or .gz, or one .txt file, or "
        f"{ENWIK8}"
    )


def _content(path: Path) -> bytes:
    content = content_of(path)
    if not content.strip():
        raise ValueError(f"{path} is empty: copy it again")
    return content


def _character_start(content: bytes, place: int) -> int:
    """The place, or the start of the UTF-8 character that it is within."""
    while place and content[place] & 0xC0 == 0x80:
        place -= 1
    return place


def text_of(content: bytes, name: str) -> str:
    """The characters of a text in UTF-8.

    Raises:
        ValueError: it is none; the message names the line and the remedy.
    """
    if b"\0" in content:
        raise ValueError(f"{name} holds bytes of 0, which no text does: use level 'byte'")
    remedy = "convert it, such as by 'iconv -f latin1 -t utf-8', or use level 'byte'"
    return decoded(content, name, remedy)


def words_of(text: str) -> Iterator[str]:
    """The words of a text between spaces, and the end of each line."""
    for line in text.removesuffix("\n").split("\n"):
        yield from line.split()
        yield LINE_END


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a level by their ids; what is not among them is `<unk>`, but of bytes, of which
    all are.

    Attributes:
        tokens: words by how often they are in the training text; characters by their code points;
            none for bytes.
    """

    level: str
    tokens: tuple[str, ...] = ()

    @classmethod
    def of(cls, level: str, training: str) -> "Vocabulary":
        """That of a training text, without looking at any other."""
        if level == "byte":
            return cls(level)
        if level == "character":
            return cls(level, (UNKNOWN, *sorted(set(training))))
        counts = Counter(words_of(training))
        others = sorted(counts.keys() - {UNKNOWN}, key=lambda word: (-counts[word], word))
        return cls(level, (UNKNOWN, *others))

    def __len__(self) -> int:
        return len(self.tokens) or N_BYTES

    @cached_property
    def ids(self) -> dict[str, int]:
        return {token: i for i, token in enumerate(self.tokens)}

    @property
    def line_end(self) -> int:
        """What a text begins after: the token of the end of a line, where there is one."""
        return ord("\n") if self.level == "byte" else self.ids.get(self._newline, 0)

    @property
    def _newline(self) -> str:
        return LINE_END if self.level == "word" else "\n"

    def encode(self, text: str | bytes) -> Tensor:
        """The ids of a text, (N,), int32."""
        if self.level == "byte":
            content = text.encode() if isinstance(text, str) else text
            return torch.from_numpy(np.frombuffer(content, dtype=np.uint8).astype(np.int32))
        if self.level == "word":
            ids = (self.ids.get(word, 0) for word in words_of(text))
            return torch.from_numpy(np.fromiter(ids, dtype=np.int32))
        points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
        known = np.array([ord(token) for token in self.tokens[1:]], dtype=np.uint32)
        at = np.searchsorted(known, points).clip(max=len(known) - 1)
        ids = np.where(known[at] == points, at + 1, 0).astype(np.int32)
        return torch.from_numpy(ids)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Each id's text; of a byte that is no character alone, its number."""
        if self.level != "byte":
            return [self.tokens[i] for i in ids]
        return [chr(i) if i < 128 else f"\\x{i:02x}" for i in ids]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; what is no UTF-8 becomes a replacement character."""
        if self.level == "byte":
            return bytes(ids).decode(errors="replace")
        if self.level == "character":
            return "".join(self.pieces(ids))
        lines = " ".join(self.pieces(ids)).split(LINE_END)
        return "\n".join(line.strip(" ") for line in lines)


@dataclass(frozen=True)
class Split:
    """A part of a text: its ids after the end of a line that is put before it, (N + 1,), and the
    bytes and characters that its N tokens stand for (None where it is no UTF-8)."""

    ids: Tensor
    n_bytes: int
    n_characters: int | None


@dataclass(frozen=True)
class Corpus:
    """A text as a task has it; `digest` is of the bytes of all parts."""

    vocabulary: Vocabulary
    train: Split
    valid: Split
    test: Split
    digest: str


@lru_cache(maxsize=2)
def load_corpus(path: Path, level: str) -> Corpus:
    """A corpus from its files, with the vocabulary of a level; read once.

    Raises:
        ValueError: it cannot be read.
    """
    contents = load_splits(path, whole_characters=level != "byte")
    if level == "byte":
        texts: Sequence[str | bytes] = contents
        vocabulary = Vocabulary.of(level, "")
    else:
        texts = [
            text_of(c, f"the {s} part of {path}") for s, c in zip(SPLITS, contents, strict=True)
        ]
        vocabulary = Vocabulary.of(level, texts[0])
    before = torch.tensor([vocabulary.line_end], dtype=torch.int32)
    parts = [
        Split(
            torch.cat([before, vocabulary.encode(text)]),
            len(content),
            len(text) if isinstance(text, str) else _n_characters(content),
        )
        for text, content in zip(texts, contents, strict=True)
    ]
    digest = sha256(b"\0".join(contents)).hexdigest()[:16]
    return Corpus(vocabulary, *parts, digest)


def _n_characters(content: bytes) -> int | None:
    """How many characters of UTF-8 bytes are."""
    try:
        return len(content.decode())
    except UnicodeDecodeError:
        return None
