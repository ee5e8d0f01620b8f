"""Language modelling: predict each token of a text from those before it.

B batch, N sequence length (of a segment), V vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from replib.checks import check_known, check_numbers
from replib.tasks.copy import MAX_SEQ_LEN, Batch, TokenTask, drawn
from replib.tasks.text_corpora import LEVELS, SHAKESPEARE, Corpus, corpus_path, load_corpus


@dataclass(frozen=True, kw_only=True)
class Text(TokenTask):
    """Predict each token of a text. With N = 4, the text is cut into B streams, and the k-th batch
    of an epoch has the k-th segment of each, so that a state can go on from one batch to the next:

        inputs   F i r s    targets  i r s t

    An epoch begins at a place of its own, below N, which the seed of a run decides.

    Attributes:
        corpus: "shakespeare", or the name of a folder in `REPLIB_TEXTS` (`text_corpora`).
        level: "word", "byte" or "character": what a token is.
        seq_len: N, tokens of a segment.
    """

    experiment: ClassVar[str] = "language_model"

    corpus: str = SHAKESPEARE
    level: str = "character"
    seq_len: int = 128

    def __post_init__(self):
        check_known(self, level=LEVELS)
        check_numbers(self, seq_len=MAX_SEQ_LEN)

    def missing_data(self, batch_size: int = 1) -> str | None:
        """Why the text cannot be read, or is too short for a batch; None where it will do."""
        try:
            self.n_segments(batch_size)
        except ValueError as error:
            return str(error)
        return None

    @property
    def text(self) -> Corpus:
        """The text and its vocabulary.

        Raises:
            ValueError: it cannot be read.
        """
        return load_corpus(corpus_path(self.corpus), self.level)

    @property
    def vocab_size(self) -> int:
        return len(self.text.vocabulary)

    def n_segments(self, batch_size: int) -> int:
        """Batches of an epoch.

        Raises:
            ValueError: the text cannot be read, or is too short for one.
        """
        n_segments = self._stream_len(batch_size) // self.seq_len
        if n_segments < 1:
            raise ValueError(
                f"{self.corpus} has {len(self.text.train.ids) - 1:,} tokens to train on, less than "
                f"a batch of {batch_size} segments of {self.seq_len}: lower batch_size or seq_len"
            )
        return n_segments

    def segment_at(self, step: int, batch_size: int) -> int:
        """Which segment of its epoch a step of a run is on, the first being 0."""
        return step % self.n_segments(batch_size)

    def batch_at(self, step: int, batch_size: int, seed: int, device) -> Batch:
        """The batch of a step of a run, the first being 0."""
        epoch, i = divmod(step, self.n_segments(batch_size))
        first = int(np.random.default_rng((seed, epoch)).integers(self.seq_len))
        first += i * self.seq_len
        starts = first + self._stream_len(batch_size) * torch.arange(batch_size)
        return self._batch(self.text.train.ids, starts, device)

    def sample(self, batch_size: int, generator: torch.Generator) -> Batch:
        """Any segments to train on, on the generator's device."""
        self.n_segments(1)
        most = len(self.text.train.ids) - self.seq_len
        starts = drawn(0, most, (batch_size,), generator)
        return self._batch(self.text.train.ids, starts.cpu(), generator.device)

    def held_out(self, batch_size, n_batches, generator) -> Iterator[Batch]:
        """The first whole segments to validate on, in their order."""
        ids = self.text.valid.ids
        n = min(n_batches * batch_size, max(1, (len(ids) - 1) // self.seq_len))
        starts = self.seq_len * torch.arange(n)
        for some in starts.split(batch_size):
            yield self._batch(ids, some, generator.device)

    def _stream_len(self, batch_size: int) -> int:
        """Tokens of a stream; the start of an epoch leaves up to N - 1."""
        return (len(self.text.train.ids) - self.seq_len) // batch_size

    def _batch(self, ids: Tensor, starts: Tensor, device) -> Batch:
        n = min(self.seq_len, len(ids) - 1)
        tokens = ids[starts.unsqueeze(1) + torch.arange(n + 1)].long().to(device)  # (B, N + 1)
        counts = torch.ones_like(tokens[:, 1:], dtype=torch.bool)
        return Batch((tokens[:, :-1],), tokens[:, 1:], counts, counts)
