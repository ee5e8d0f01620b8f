"""The losses of the 2022 replication, read off its figures, and the levels that its task has.

The article prints sums over a batch that it does not tell; here they are nats a token.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from replib.tasks import SequenceCopy


def unigram_entropy(task: SequenceCopy) -> float:
    """The loss of a model that knows how often each token is expected and nothing else, nats a
    token: N - 2 symbols, uniform, and one end. The plateau before anything is learned."""
    n = task.seq_len - 1
    symbol = (n - 1) / n / task.n_symbols
    return -(n - 1) / n * math.log(symbol) - math.log(1 / n) / n


def bag_entropy(task: SequenceCopy) -> float:
    """The loss of a model that knows which symbols the source holds, each how often, and where it
    ends, but not their order, nats a token: the mean entropy of N - 2 draws from a uniform.

        E[-sum_s (c_s / n) log(c_s / n)] n / (n + 1),  c_s ~ Binomial(n, 1 / symbols),  n = N - 2
    """
    n, k = task.seq_len - 2, task.n_symbols
    entropy = k * sum(
        math.comb(n, c) * (1 / k) ** c * (1 - 1 / k) ** (n - c) * -(c / n) * math.log(c / n)
        for c in range(1, n + 1)
    )
    return entropy * n / (n + 1)


@dataclass(frozen=True)
class Read:
    """A loss of the article: as printed, a sum over the batch, and in nats a token."""

    attention: str
    seq_len: int
    printed: float
    batch: int

    @property
    def nats(self) -> float:
        return self.printed / self.batch

    @property
    def text(self) -> str:
        """Nats a token; a reading is a decimal number, and half a digit goes to the even one."""
        return f"{Decimal(str(self.printed)) / self.batch:z.2f}"


@dataclass(frozen=True)
class Jump:
    """A jump of one of the article's curves, after which it ends: the loss before it, and when."""

    before: Read
    after: Read
    step: int

    @property
    def text(self) -> str:
        """Such as "softmax at N = 32 stands at 2.09 until it jumps at step 2580, to 2.22"."""
        return (
            f"{self.after.attention} at N = {self.after.seq_len} stands at {self.before.text} "
            f"until it jumps at step {self.step}, to {self.after.text}"
        )


READING = re.compile(
    r"(?P<loss>[\d.]+)(?: then jump to (?P<after>[\d.]+) at ~(?P<jump>\d+))?"
    r"(?: from ~\d+)?(?: \(spike ~[\d.]+ at ~\d+\))?"
)
"""Of a curve's end: "57.7", "16.7 then jump to 17.8 at ~2580", "0 from ~900"."""


def _readings(article: Mapping[str, Any]) -> dict[tuple[str, int], re.Match]:
    """
    Raises:
        ValueError: a reading is not of the form of READING.
    """
    found = {}
    for attention, by_length in article["plots_final_loss"].items():
        for n, text in by_length.items():
            reading = READING.fullmatch(str(text))
            if reading is None:
                raise ValueError(f"reading {text!r}: write it as {READING.pattern}")
            found[attention, int(n)] = reading
    return found


def article_ends(article: Mapping[str, Any]) -> dict[tuple[str, int], Read]:
    """The article's final losses of each mechanism and N."""
    batches = {attention: one.batch for (attention, _), one in article_plateaus(article).items()}
    return {
        (a, n): Read(a, n, float(reading["after"] or reading["loss"]), batches[a])
        for (a, n), reading in _readings(article).items()
    }


def article_jumps(article: Mapping[str, Any]) -> list[Jump]:
    """The jumps that the article's curves end with."""
    ends = article_ends(article)
    return [
        Jump(Read(*key, float(reading["loss"]), ends[key].batch), ends[key], int(reading["jump"]))
        for key, reading in _readings(article).items()
        if reading["jump"]
    ]


def article_plateaus(article: Mapping[str, Any]) -> dict[tuple[str, int], Read]:
    """The losses before anything is learned, at the two lengths at which they were read. Their
    ratio to the unigram entropy says the batch, a power of two that the article does not tell.

    Raises:
        ValueError: the lengths disagree about a mechanism's batch.
    """
    found = {}
    for name, one in article["loss_scale"]["H_check"].items():
        n = int(name.split("=")[1])
        entropy = unigram_entropy(SequenceCopy(seq_len=n))
        for attention, printed in zip(("softmax", "linear"), one["observed"], strict=True):
            batch = 2 ** round(math.log2(printed / entropy))
            found[attention, n] = Read(attention, n, printed, batch)
    for attention in ("softmax", "linear"):
        batches = sorted({one.batch for one in found.values() if one.attention == attention})
        if len(batches) != 1:
            raise ValueError(f"{attention} plateaus say batches {batches}: correct the facts")
    return found
