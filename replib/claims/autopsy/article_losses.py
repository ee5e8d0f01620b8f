"""The losses of the 2022 replication, read off its figures, and the levels that its task has.

The article prints sums over a batch that it does not tell; here they are nats a token. Between the
readings its curves are not known.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from replib.tasks import SequenceCopy

SPIKE_STEPS = 20  # half the width that a spike is drawn with: its figure shows a line


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
    what: str
    printed: float
    batch: int

    @property
    def nats(self) -> float:
        return self.printed / self.batch

    @property
    def text(self) -> str:
        """Nats a token; a reading is a decimal number, and half a digit goes to the even one."""
        return f"{Decimal(str(self.printed)) / self.batch:z.2f}"


PLATEAU, BEFORE, FINAL = "first plateau", "before a jump", "final"


def article_losses(article: Mapping[str, Any]) -> list[Read]:
    """What can be read off the article's figures: final losses, and at two lengths the plateau
    before anything is learned. Their ratio to the unigram entropy says the batch, a power of two
    that the article does not tell."""
    batches = article_batches(article)
    found = []
    for attention, by_length in article["plots_final_loss"].items():
        for n, text in by_length.items():
            _, printed = _points(str(text), article["steps"])[-1]
            found.append(Read(attention, int(n), FINAL, printed, batches[attention]))
    for n, (softmax, linear) in _plateaus(article).items():
        for attention, printed in (("softmax", softmax), ("linear", linear)):
            found.append(Read(attention, n, PLATEAU, printed, batches[attention]))
    return found


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


def article_jumps(article: Mapping[str, Any]) -> list[Jump]:
    """The jumps that the article's curves end with."""
    found = []
    for after in (one for one in article_losses(article) if one.what == FINAL):
        reading = str(article["plots_final_loss"][after.attention][str(after.seq_len)])
        parts = READING.fullmatch(reading)
        if parts and parts["jump"]:
            before = Read(after.attention, after.seq_len, BEFORE, float(parts["loss"]), after.batch)
            found.append(Jump(before, after, int(parts["jump"])))
    return found


def article_batches(article: Mapping[str, Any]) -> dict[str, int]:
    """The batch of each mechanism's runs, as their plateaus betray it."""
    batches: dict[str, set[int]] = {"softmax": set(), "linear": set()}
    for n, pair in _plateaus(article).items():
        entropy = unigram_entropy(SequenceCopy(seq_len=n))
        for attention, printed in zip(batches, pair, strict=True):
            batches[attention].add(2 ** round(math.log2(printed / entropy)))
    for attention, found in batches.items():
        if len(found) != 1:
            raise ValueError(f"{attention} plateaus say batches {sorted(found)}: correct the facts")
    return {attention: found.pop() for attention, found in batches.items()}


def _plateaus(article: Mapping[str, Any]) -> dict[int, list[float]]:
    """Softmax and linear, by N."""
    checks = article["loss_scale"]["H_check"]
    return {int(name.split("=")[1]): one["observed"] for name, one in checks.items()}


@dataclass(frozen=True)
class Piece:
    """A stretch of a curve of the article: its points, step and loss in nats a token, and whether
    they were read off the figure; if not, it joins two readings, with what is between unknown."""

    attention: str
    seq_len: int
    read: bool
    points: tuple[tuple[int, float], ...]


READING = re.compile(
    r"(?P<loss>[\d.]+)(?: then jump to (?P<after>[\d.]+) at ~(?P<jump>\d+))?"
    r"(?: from ~(?P<since>\d+))?(?: \(spike ~(?P<spike>[\d.]+) at ~(?P<at>\d+)\))?"
)


def article_curves(article: Mapping[str, Any]) -> list[Piece]:
    """The article's curves, as far as they are known: the first plateau where it was read, from
    when on a loss is known, its jumps and its spikes.

    Raises:
        ValueError: a reading is not of the form of READING.
    """
    batches, plateaus, pieces = article_batches(article), _plateaus(article), []
    for column, attention in enumerate(("softmax", "linear")):
        for name, text in article["plots_final_loss"][attention].items():
            n, batch = int(name), batches[attention]
            read = [(step, loss / batch) for step, loss in _points(str(text), article["steps"])]
            if n in plateaus:
                start = (0, plateaus[n][column] / batch)
                pieces.append(Piece(attention, n, True, (start,)))
                pieces.append(Piece(attention, n, False, (start, read[0])))
            pieces.append(Piece(attention, n, True, tuple(read)))
    return pieces


def _points(text: str, last: int) -> list[tuple[int, float]]:
    """Steps and losses, as printed, of a reading: "16.7 then jump to 17.8 at ~2580", "0 from ~1650
    (spike ~11 at ~2840)", or a number, which is the loss of the last step."""
    found = READING.fullmatch(text)
    if found is None:
        raise ValueError(f"reading {text!r}: write it as {READING.pattern}")
    loss, after, jump, since, spike, at = (
        None if one is None else float(one) for one in found.groups()
    )
    points = []
    if since is not None:
        points.append((int(since), loss))
    if jump is not None:
        points += [(int(jump) - SPIKE_STEPS, loss), (int(jump), after)]
    if spike is not None:
        points += [(int(at) + i * SPIKE_STEPS, (loss, spike, loss)[i + 1]) for i in (-1, 0, 1)]
    return [*points, (last, loss if after is None else after)]
