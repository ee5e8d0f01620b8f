"""Translation: English number and date words into German, which are drawn, and parallel texts from
files.

B batch, N sequence length in tokens, of the source N'.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from replib.checks import check_known, check_numbers
from replib.tasks import number_words
from replib.tasks.copy import Batch, TokenTask, drawn
from replib.tasks.text_files import (
    END,
    KINDS,
    N_SPECIAL,
    PAD,
    START,
    UNKNOWN,
    Pairs,
    Subwords,
    corpus_folder,
    digest_of,
    load_pairs,
    train_subwords,
)

NUMBER_TOKENS = 16  # no number or date has more
HELD_OUT_OF = 10  # one of so many numbers and dates is for the test
ALWAYS_SEEN = 100  # numbers below it are what the others are made of
MAX_TOKENS, MAX_VOCABULARY = 2**14, 2**18  # more is taken for a slip


class Translating(TokenTask):
    """What translation tasks share: a source with an end, which is padded on the right, and a
    target between a start and an end. With the source "twenty-one" and the target "einundzwanzig":

        source         twenty one </s>
        decoder input  <s> _ein und zwanzig
        targets        _ein und zwanzig </s>

    No target is padded in what the decoder sees: what stands on the right of a token is hidden from
    it.
    """

    FIGURES: ClassVar[tuple[str, ...]] = ("perplexity",)
    start: ClassVar[int] = START
    end: ClassVar[int] = END

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of sources, without an end."""
        raise NotImplementedError

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a translation, up to its end."""
        raise NotImplementedError

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The text of each id of a source or a translation."""
        raise NotImplementedError

    def test_texts(self) -> Pairs:
        """Sources and references that no step has seen."""
        raise NotImplementedError

    def test_batches(self, batch_size: int, device: torch.device) -> Iterator[Batch]:
        """The test in its order."""
        raise NotImplementedError

    def source(self, ids: Sequence[Sequence[int]], device) -> tuple[Tensor, Tensor]:
        """Sources as tokens (B, N') and a mask (B, N'), True at padding."""
        rows = [[*row[: self.seq_len - 1], END] for row in ids]
        tokens = _padded(rows, device)
        return tokens, tokens == PAD

    def batch(self, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], device):
        """The task of translating some sentences."""
        source, mask = self.source(sources, device)
        rows = [[START, *row[: self.seq_len - 1], END] for row in targets]
        tokens = _padded(rows, device)
        given, expected = tokens[:, :-1], tokens[:, 1:]
        counts = expected != PAD
        return Batch((source, given, mask), expected, counts, counts)


def _padded(rows: Sequence[Sequence[int]], device) -> Tensor:
    """Rows of ids as (B, N), padded on the right."""
    longest = max(map(len, rows), default=0)
    table = np.full((len(rows), longest), PAD, dtype=np.int64)
    for place, row in zip(table, rows, strict=True):
        place[: len(row)] = row
    return torch.from_numpy(table).to(device)


@dataclass(frozen=True, kw_only=True)
class NumberWords(Translating):
    """Translate numbers and dates, such as

        four thousand three hundred and twenty-one   viertausenddreihunderteinundzwanzig
        the third of May nineteen eighty-seven       der dritte Mai neunzehnhundertsiebenundachtzig
        May the third nineteen eighty-seven          the same

    The tokens are the words of English and the pieces of German words. Numbers of each number of
    digits are equally often; a tenth of the numbers from 100 on and of the dates is never drawn, as
    the test is of them.

    Attributes:
        largest: of the numbers.
        dates: half of what is drawn are dates.
        seq_len: tokens that the longest has room in.
    """

    experiment: ClassVar[str] = "number_words"

    largest: int = number_words.LARGEST
    dates: bool = True
    seq_len: int = field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "seq_len", NUMBER_TOKENS)
        if not ALWAYS_SEEN <= self.largest <= number_words.LARGEST:
            raise ValueError(
                f"largest {self.largest}: use {ALWAYS_SEEN} to {number_words.LARGEST:,}"
            )

    @property
    def vocab_size(self) -> int:
        return len(_vocabulary())

    def sample(self, batch_size: int, generator: torch.Generator) -> Batch:
        """Draw a batch, on the generator's device."""
        return self._batch(self._drawn(batch_size, generator, test=False), generator.device)

    def test_texts(self, n: int = 1000) -> Pairs:
        """As many of those that are never drawn, always the same."""
        english, german = zip(*self._test(n), strict=True)
        return english, tuple("".join(pieces).strip() for pieces in german)

    def test_batches(self, batch_size, device):
        pairs = self._test()
        for i in range(0, len(pairs), batch_size):
            yield self._batch(pairs[i : i + batch_size], device)

    def held_out(self, batch_size, n_batches, generator):
        """Of those that are never drawn to train on."""
        for _ in range(n_batches):
            yield self._batch(self._drawn(batch_size, generator, test=True), generator.device)

    def encode(self, texts):
        ids = _ids(0)
        return [[ids.get(x, UNKNOWN) for x in number_words.english_words(text)] for text in texts]

    def decode(self, ids):
        ids = list(ids)
        return "".join(self.pieces(ids[: ids.index(END)] if END in ids else ids)).strip()

    def pieces(self, ids):
        return [_vocabulary()[i] for i in ids]

    def _test(self, n: int = 1000) -> list[tuple[str, tuple[str, ...]]]:
        return self._drawn(n, torch.Generator().manual_seed(0), test=True)

    def _batch(self, pairs: Sequence[tuple[str, tuple[str, ...]]], device) -> Batch:
        german = _ids(1)
        targets = [[german[piece] for piece in pieces] for _, pieces in pairs]
        return self.batch(self.encode([english for english, _ in pairs]), targets, device)

    def _drawn(
        self, n: int, generator: torch.Generator, *, test: bool
    ) -> list[tuple[str, tuple[str, ...]]]:
        """English texts and German pieces, of those for the test or of the others."""
        found = []
        while len(found) < n:
            shape = 2 * (n - len(found)) * (HELD_OUT_OF if test else 1), 4
            ones = (
                self._one(numbers, test) for numbers in drawn(0, 2**40, shape, generator).tolist()
            )
            found += islice(filter(None, ones), n - len(found))
        return found

    def _one(self, random: list[int], test: bool) -> tuple[str, tuple[str, ...]] | None:
        """What four random numbers stand for; None where it is of the other set."""
        first, second, third, fourth = random
        if self.dates and first % 2:
            month = second % 12
            years = number_words.LAST_YEAR + 1 - number_words.FIRST_YEAR
            year = number_words.FIRST_YEAR + fourth % years
            date = 1 + third % number_words.DAYS[month], 1 + month, year
            if _is_held_out(year * 372 + month * 31 + date[0]) != test:
                return None
            english = number_words.english_date(date, month_first=bool(first // 2 % 2))
            return english, number_words.german_date_pieces(date)
        n_digits = 1 + second % len(str(self.largest))
        low, high = (10 ** (n_digits - 1) if n_digits > 1 else 0), 10**n_digits - 1
        number = low + third % (min(high, self.largest) + 1 - low)
        if (number >= ALWAYS_SEEN and _is_held_out(number)) != test:
            return None
        return number_words.english_number(number), number_words.german_pieces(number)


def _is_held_out(key: int) -> bool:
    """Of a tenth of the keys, without any order."""
    return (key * 2654435761 >> 12) % 2**20 % HELD_OUT_OF == 0  # Knuth's multiplicative hash


@lru_cache(maxsize=1)
def _vocabulary() -> tuple[str, ...]:
    specials = ("", "<unk>", "<s>", "</s>")
    return specials + number_words.english_vocabulary() + number_words.german_vocabulary()


@lru_cache(maxsize=2)
def _ids(side: int) -> dict[str, int]:
    """Of the words of English (0) or the pieces of German (1)."""
    english, german = number_words.english_vocabulary(), number_words.german_vocabulary()
    first = N_SPECIAL + (len(english) if side else 0)
    return {word: first + i for i, word in enumerate((english, german)[side])}


@dataclass(frozen=True, kw_only=True)
class ParallelText(Translating):
    """Translate the sentences of a corpus, from files (`text_files`) that are not of this project.

    Sentences go through in epochs, in an order that the seed of a run and the epoch decide; a batch
    holds sentences of like length, and as many tokens as `batch_size` sentences of mean length have
    at most, padding counted.

    Deviation: the Linformer work cuts at 256 tokens and never shuffles; here longer pairs are left
    out of the training, and each epoch has an order of its own.

    Attributes:
        corpus: the name of a folder in `REPLIB_TEXTS`.
        source_language, target_language: the endings of its files.
        vocab_size: subwords of both languages, specials among them.
        joint: one vocabulary for both, or one for each, half as large.
        subwords: "bpe" or "unigram", of sentencepiece.
        max_len: tokens of the longest sentence, its end among them.
        seq_len: the same, as other tasks call it.
    """

    experiment: ClassVar[str] = "translation"

    corpus: str = "multi30k"
    source_language: str = "en"
    target_language: str = "de"
    vocab_size: int = 8000
    joint: bool = True
    subwords: str = "bpe"
    max_len: int = 128
    seq_len: int = field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "seq_len", self.max_len)
        check_numbers(self, vocab_size=(2 * N_SPECIAL, MAX_VOCABULARY), max_len=(4, MAX_TOKENS))
        check_known(self, subwords=KINDS)

    def missing_data(self, batch_size: int = 1) -> str | None:
        """Why the texts cannot be read, or would not be scored; None where they can."""
        if find_spec("sacrebleu") is None:
            return "BLEU needs sacrebleu: 'pip install sacrebleu'"
        try:
            self.text  # noqa: B018
        except ValueError as error:
            return str(error)
        return None

    @property
    def text(self) -> "Corpus":
        """The texts and the vocabulary; read and trained once.

        Raises:
            ValueError: they cannot be read, or have not as many subwords.
        """
        return _corpus(self, corpus_folder(self.corpus))

    def sample(self, batch_size: int, generator: torch.Generator) -> Batch:
        """Any sentences to train on, on the generator's device."""
        train = self.text.train
        rows = drawn(0, len(train), (batch_size,), generator)
        return self._batch(train, rows.tolist(), generator.device)

    def batch_at(self, step: int, batch_size: int, seed: int, device) -> Batch:
        """The batch of a step of a run, the first being 0."""
        train = self.text.train
        epoch, i = divmod(step, len(train.batches(batch_size, seed, 0)))
        return self._batch(train, train.batches(batch_size, seed, epoch)[i], device)

    def held_out(self, batch_size, n_batches, generator):
        """The first sentences to validate on, in their order."""
        yield from self._in_order(self.text.val, batch_size, generator.device, n_batches)

    def test_batches(self, batch_size, device):
        yield from self._in_order(self.text.test, batch_size, device)

    def test_texts(self) -> Pairs:
        return self.text.test_texts

    def encode(self, texts):
        return self.text.of_source.encode(texts)

    def decode(self, ids):
        ids = list(ids)
        return self.text.of_target.decode(ids[: ids.index(END)] if END in ids else ids)

    def pieces(self, ids):
        source, target = self.text.of_source, self.text.of_target
        return [(target if i >= target.offset + N_SPECIAL else source).pieces([i])[0] for i in ids]

    def _in_order(self, pairs, batch_size, device, n_batches: int | None = None):
        n = len(pairs) if n_batches is None else min(len(pairs), n_batches * batch_size)
        for first in range(0, n, batch_size):
            yield self._batch(pairs, range(first, min(first + batch_size, n)), device)

    def _batch(self, pairs: "Encoded", rows: Sequence[int], device) -> Batch:
        return self.batch(
            *([side[i] for i in rows] for side in (pairs.source, pairs.target)), device
        )


class Sentences:
    """Ids of sentences, in one array."""

    def __init__(self, sentences: Sequence[Sequence[int]]):
        self.lengths = np.array([len(x) for x in sentences], dtype=np.int64)
        self._ends = self.lengths.cumsum()
        self._ids = np.fromiter(
            (i for ids in sentences for i in ids), dtype=np.int32, count=int(self.lengths.sum())
        )

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, i: int) -> np.ndarray:
        return self._ids[self._ends[i] - self.lengths[i] : self._ends[i]]


class Encoded:
    """Pairs of sentences as ids."""

    def __init__(self, source: Sentences, target: Sentences):
        self.source, self.target = source, target
        self.batches = lru_cache(maxsize=4)(self._batches)

    def __len__(self) -> int:
        return len(self.source)

    def _batches(self, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
        """The pairs of each batch of an epoch; as many batches in every epoch."""
        source, target = self.source.lengths, self.target.lengths
        longer = np.maximum(source, target) + 1
        budget = batch_size * longer.mean()
        generator = np.random.default_rng((seed, epoch))
        order = generator.permutation(len(self))
        # Stable, so that pairs of the same lengths stay shuffled.
        order = order[np.lexsort((source[order], target[order]))]
        cuts, first, longest = [], 0, 0
        for i, n in enumerate(longer[order].tolist()):
            longest = max(longest, n)
            if i > first and longest * (i + 1 - first) > budget:
                cuts.append(i)
                first, longest = i, n
        batches = np.split(order, cuts)
        return [batches[i] for i in generator.permutation(len(batches))]


@dataclass(frozen=True)
class Corpus:
    """Texts as a task has them.

    Attributes:
        n_too_long: pairs of the training that are left out.
        digest: of the test and of the vocabulary, which the other texts decide.
    """

    of_source: Subwords
    of_target: Subwords
    train: Encoded
    val: Encoded
    test: Encoded
    test_texts: Pairs
    n_too_long: int

    @cached_property
    def digest(self) -> str:
        return digest_of([*self.test_texts[0], *self.test_texts[1], self.of_target.model.hex()])


@lru_cache(maxsize=2)
def _corpus(task: ParallelText, folder: Path) -> Corpus:
    languages = task.source_language, task.target_language
    texts = {split: load_pairs(folder, split, *languages) for split in ("train", "val", "test")}
    source, target = texts["train"]
    if task.joint:
        both = train_subwords([*source, *target], task.vocab_size, kind=task.subwords)
        vocabularies = both, both
    else:
        size = task.vocab_size // 2
        vocabularies = (
            train_subwords(source, size, kind=task.subwords),
            train_subwords(target, size, kind=task.subwords, offset=size),
        )

    def encoded(pairs: Pairs, longest: int | None = None) -> tuple[Encoded, int]:
        sides = [v.encode(side) for v, side in zip(vocabularies, pairs, strict=True)]
        every = list(zip(*sides, strict=True))
        kept = [pair for pair in every if longest is None or max(map(len, pair)) < longest]
        if not kept:
            raise ValueError(f"no pair has less than {longest} tokens: use a larger max_len")
        found = Encoded(*(Sentences(side) for side in zip(*kept, strict=True)))
        return found, len(every) - len(kept)

    train, n_too_long = encoded(texts["train"], task.max_len)
    val, test = encoded(texts["val"])[0], encoded(texts["test"])[0]
    return Corpus(*vocabularies, train, val, test, texts["test"], n_too_long)
