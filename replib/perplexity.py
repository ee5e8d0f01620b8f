"""How well a language model predicts a text: the nats of every token.

B windows at once, N tokens of a text, W of a window, L of a segment of it.

A model is given the text in windows. With a stride of W they are blocks, which lie side by side,
and a token is predicted from those before it in its block; with a shorter stride each window scores
what no window before it has scored, from at least W - stride tokens ("sliding window"). A window
may go through the model in segments of L, whose state is carried from one to the next.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

MOST_NATS = 80.0  # exp of more is infinite in a row
STUDY_STREAMS = 10  # in which the language-model study evaluates


class Scored(NamedTuple):
    """Of the N tokens of a text in their order: nats (float64), the position of each in its window,
    and whether it was the likeliest."""

    nats: Tensor
    position: Tensor
    right: Tensor

    @property
    def perplexity(self) -> float:
        """exp of the mean of all tokens' nats."""
        return perplexity(self.nats)

    def by_position(self) -> list[dict[str, float]]:
        """The mean nats of the tokens at positions up to 1, 2, 4, 8, ... in their window, from the
        power before on: what a longer context buys."""
        group = (self.position + 1).double().log2().ceil().long()
        return [
            {"position": 2**i, "nats": self.nats[group == i].mean().item()}
            for i in range(int(group.max()) + 1)
        ]

    def by_segment(self, segment_len: int) -> list[float]:
        """The mean nats of the tokens of the first, second, ... segment of their window."""
        segment = self.position // segment_len
        counts = segment.bincount()
        return (segment.bincount(self.nats) / counts).tolist()


def perplexity(nats: Tensor) -> float:
    """exp of the mean of nats a token; what is beyond e^80 is told as that."""
    return math.exp(min(nats.double().mean().item(), MOST_NATS))


def bits_per(nats: Tensor, n: int) -> float:
    """Bits per byte, or per character, of a text that has n of them, whose tokens have these
    nats: what compares tokens of different kinds."""
    return nats.double().sum().item() / math.log(2) / n


@torch.no_grad()
def score(
    model: nn.Module,
    ids: Tensor,
    *,
    window: int | None,
    stride: int | None = None,
    segment: int | None = None,
    memory_len: int | None = None,
    batch_size: int = 32,
) -> Scored:
    """Score all of a text.

    Args:
        ids: (N + 1,), the first of which is given and not scored.
        window: W; None for one window of the whole text.
        stride: of windows; W if left out.
        segment: L, where a window goes through the model in segments; then the state is carried.
        memory_len: of a cache of keys and values, how many of the last are carried.
        batch_size: windows at once.

    Raises:
        ValueError: there is no token to score, or the stride is not 1 to W.
    """
    n = len(ids) - 1
    if n < 1:
        raise ValueError("the text has no token to score: give at least two ids")
    window = n if window is None else min(window, n)
    stride = window if stride is None else min(stride, window)
    if stride < 1:
        raise ValueError(f"stride {stride}: use 1 to the window's {window} tokens")
    nats = torch.empty(n, dtype=torch.float64)
    position, right = torch.empty(n, dtype=torch.int64), torch.empty(n, dtype=torch.bool)
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    # One that ends beyond the text is shorter, and by itself.
    n_whole = (n - window) // stride + 1
    starts = stride * torch.arange(n_whole + (window + (n_whole - 1) * stride < n))
    for some in filter(len, [*starts[:n_whole].split(batch_size), starts[n_whole:]]):
        length = min(window, n - int(some[0]))
        tokens = ids[some.unsqueeze(1) + torch.arange(length + 1)].long().to(device)
        parts = _nats(model, tokens, segment, memory_len)
        of_tokens, of_right = (torch.cat(x, dim=1) for x in zip(*parts, strict=True))
        for i, start in enumerate(some.tolist()):
            first = window - stride if start else 0
            places = slice(start + first, start + length)
            nats[places], right[places] = of_tokens[i, first:], of_right[i, first:]
            position[places] = torch.arange(first, length)
    model.train(was_training)
    return Scored(nats, position, right)


def _nats(
    model: nn.Module, tokens: Tensor, segment: int | None, memory_len: int | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """The nats of windows (B, W + 1), and where the likeliest token is right, a segment (B, L) at a
    time."""
    given, expected = tokens[:, :-1], tokens[:, 1:]
    if segment is None:
        yield _compared(model(given), expected)
        return
    state = model.init_state(len(tokens))
    for some, targets in zip(given.split(segment, 1), expected.split(segment, 1), strict=True):
        logits, state = model.prefill(state, some)
        state = state.carried(memory_len)
        yield _compared(logits, targets)


def _compared(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(logits.dtype, torch.float32)
    rows = logits.flatten(0, 1).to(wide)  # so that V is contiguous
    nats = cross_entropy(rows, targets.flatten(), reduction="none").view(targets.shape)
    return nats.double().cpu(), (logits.argmax(-1) == targets).cpu()


def mean_of_batch_means(model: nn.Module, ids: Tensor, *, seq_len: int) -> float:
    """The perplexity that the language-model study tells: exp of the mean over batches of their
    mean losses, of ten streams, where the last batch, which is shorter, counts as much as any."""
    n_streams = min(STUDY_STREAMS, len(ids) - 1)
    n = (len(ids) - 1) // n_streams
    streams = [ids[i * n : (i + 1) * n + 1] for i in range(n_streams)]
    nats = torch.stack([score(model, one, window=seq_len).nats for one in streams])
    return perplexity(torch.stack([batch.mean() for batch in nats.split(seq_len, dim=1)]))
