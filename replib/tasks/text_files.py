"""Parallel texts from files that a reader has, and subword vocabularies that are trained on them.

A corpus is a folder with `train`, `val` and `test` in two languages, a sentence a line, in UTF-8:
`train.en` and `train.de`, or `train.en.gz` and so on, or `train.csv` with a column a language. A
split may have the names of SPLITS, and something more behind them, as `test_2016_flickr.en.gz`.

Subwords are those of sentencepiece: it needs no other package, trains on raw text in seconds, and
gives the text back to a letter, spaces included, which tokenizers does only by bytes.
"""

import csv
import gzip
import hashlib
import io
import os
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from replib.files import cache_folder, read_whole, replace_file

FOLDER = "REPLIB_TEXTS"
SPLITS = {"train": ("train",), "val": ("val", "dev"), "test": ("test", "newstest2014")}
PAD, UNKNOWN, START, END = range(4)
N_SPECIAL = 4
MAX_NAMED = 5  # lines that a message names
KINDS = ("bpe", "unigram")

Pairs = tuple[tuple[str, ...], tuple[str, ...]]
"""The sentences of two languages, as many of one as of the other."""


def corpus_folder(corpus: str, files: str = "train.en and train.de, so too val and test") -> Path:
    """Where the files of a corpus are: in a folder of its name in that which `REPLIB_TEXTS` names.

    Args:
        files: which they are, in words.

    Raises:
        ValueError: it is not set, or there is no such folder.
    """
    where = os.environ.get(FOLDER)
    if not where:
        raise ValueError(
            f"{corpus} is not at hand: set {FOLDER} to a folder that has {corpus} with {files}, "
            "plain or .gz"
        )
    path = Path(where).expanduser() / corpus
    if not path.is_dir():
        raise ValueError(f"there is no folder {path}: put {files} into it, plain or .gz")
    return path


def load_pairs(folder: Path, split: str, source: str, target: str) -> Pairs:
    """The sentences of a split, without spaces at their ends.

    Raises:
        ValueError: a file is missing or is not UTF-8, the sides differ in length, or a line is
            empty; the message names the file, the lines and the remedy.
    """
    table = _found(folder, split, "csv")
    if table is not None:
        rows = list(csv.DictReader(io.StringIO(_text(table))))
        if rows and not {source, target} <= rows[0].keys():
            raise ValueError(f"{table} has no columns {source} and {target}: name them so")
        sides = [[row[side] or "" for row in rows] for side in (source, target)]
        names = [f"{table}, column {side}" for side in (source, target)]
    else:
        paths = [_found(folder, split, side) for side in (source, target)]
        for path, side in zip(paths, (source, target), strict=True):
            if path is None:
                expected = f"{SPLITS[split][0]}.{side}"
                raise ValueError(f"{folder} has no {expected}, plain or .gz: put it there")
        # Not `splitlines`, which takes other characters for ends of lines too.
        sides = [_text(path).removesuffix("\n").split("\n") for path in paths]
        names = [str(path) for path in paths]
    if len(sides[0]) != len(sides[1]):
        raise ValueError(
            f"{names[0]} has {len(sides[0]):,} lines and {names[1]} {len(sides[1]):,}: they must "
            "be translations of each other, line by line"
        )
    sides = [[line.strip() for line in side] for side in sides]
    for name, side in zip(names, sides, strict=True):
        empty = [i for i, line in enumerate(side, start=1) if not line]
        if empty:
            some = ", ".join(map(str, empty[:MAX_NAMED])) + ", ..." * (len(empty) > MAX_NAMED)
            raise ValueError(
                f"{name} has {len(empty):,} empty lines ({some}): remove them from both sides"
            )
    return tuple(sides[0]), tuple(sides[1])


def _found(folder: Path, split: str, ending: str) -> Path | None:
    """The file of a split; the shortest name where there are several."""
    candidates = [
        path
        for name in SPLITS[split]
        for end in (f".{ending}", f".{ending}.gz")
        for path in folder.glob(f"{name}*{end}")
    ]
    return min(candidates, key=lambda path: (len(path.name), path.name), default=None)


def _text(path: Path) -> str:
    remedy = f"convert it, such as by 'iconv -f latin1 -t utf-8 {path.name}'"
    return decoded(content_of(path), path, remedy)


def content_of(path: Path) -> bytes:
    """The bytes of a file, of a .gz what it holds.

    Raises:
        ValueError: it cannot be read, as a pipe or a folder cannot, or is torn.
    """
    try:
        content = read_whole(path)
        return gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read ({error}): copy it again") from error


def decoded(content: bytes, name: str | Path, remedy: str) -> str:
    """The characters of a text in UTF-8.

    Raises:
        ValueError: it is none; the message has the line and the remedy.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ValueError(f"line {line} of {name} is not UTF-8: {remedy}") from error


def digest_of(lines: Iterable[str]) -> str:
    """16 hex digits of a text."""
    text = hashlib.sha256()
    for line in lines:
        text.update(line.encode() + b"\n")
    return text.hexdigest()[:16]


@dataclass(frozen=True)
class Subwords:
    """A subword vocabulary; ids 0 to 3 are padding, unknown, start and end.

    Attributes:
        model: of sentencepiece.
        offset: added to the ids of subwords, where two vocabularies have one table of embeddings.
    """

    model: bytes
    offset: int = 0

    @cached_property
    def _processor(self):
        import sentencepiece

        return sentencepiece.SentencePieceProcessor(model_proto=self.model)

    def encode(self, lines: Sequence[str]) -> list[list[int]]:
        """The ids of sentences, without start and end."""
        found = self._processor.encode(list(lines))
        if not self.offset:
            return found
        return [[i + self.offset if i >= N_SPECIAL else i for i in ids] for ids in found]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; what is no subword of this vocabulary is left out."""
        own = (i - self.offset for i in ids if i >= N_SPECIAL)
        return self._processor.decode([i for i in own if N_SPECIAL <= i < len(self._processor)])

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Each id's subword, where ▁ is a space."""
        return [self._processor.id_to_piece(max(0, i - self.offset)) for i in ids]


def train_subwords(
    lines: Sequence[str], size: int, *, kind: str = "bpe", offset: int = 0
) -> Subwords:
    """A vocabulary of so many ids, from the cache where it was trained before.

    Raises:
        ValueError: sentencepiece is missing, or the text has not as many subwords.
    """
    try:
        import sentencepiece
    except ImportError as error:
        raise ValueError("subwords need sentencepiece: 'pip install sentencepiece'") from error
    name = f"{digest_of(lines)}_{kind}_{size}.model"
    path = cache_folder() / "subwords" / name
    if path.exists():
        return Subwords(path.read_bytes(), offset)
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            vocab_size=size,
            model_type=kind,
            pad_id=PAD,
            unk_id=UNKNOWN,
            bos_id=START,
            eos_id=END,
            character_coverage=1.0,
            num_threads=1,  # with several the vocabulary is another each time
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ValueError(
            f"a vocabulary of {size} subwords cannot be made of {len(lines):,} sentences "
            f"({str(error).strip()[-120:]}): use a smaller vocab_size"
        ) from error
    replace_file(path, model.getvalue())
    return Subwords(model.getvalue(), offset)
