"""The picture of the start page: linear attention a position at a time, beside its matrix.

N sequence length, D query/key size, M value size, R feature size; one head, D = M, float64.
"""

import html
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import marimo as mo
import torch
from torch import Tensor

from replib.attention import by_hand
from replib.pages import layout
from replib.pages.style import NEUTRAL, PALETTE

TEXT = "transformers are rnns: linear attention"
REAL_HEAD_DIM = 64  # of the models that the paper speeds up
NUMBER_BYTES = 4  # float32, which models use
FEATURE_MAPS = ("elu1", "relu", "dpfp1", "dpfp2")
EVERY_S = 0.7  # a position, while it plays
LINEAR, SOFTMAX = PALETTE["linear"], PALETTE["softmax"]
PLOT = (280, 96)  # pixels


@dataclass(frozen=True)
class Walk:
    """A sequence, attended to both ways.

    Attributes:
        weights: (N, N), of the matrix.
        by_matrix, by_rnn: (N, M), the outputs.
        s, z: (N, R, M) and (N, R), the state after each position.
    """

    letters: str
    weights: Tensor
    by_matrix: Tensor
    by_rnn: Tensor
    s: Tensor
    z: Tensor

    @property
    def state_numbers(self) -> int:
        return self.s[0].numel() + self.z[0].numel()


@lru_cache(maxsize=64)
def walk(seq_len: int, head_dim: int, feature_map: str) -> Walk:
    """The first letters of TEXT, each a query, a key and a value of its own."""
    letters = TEXT[:seq_len]
    generator = torch.Generator().manual_seed(0)
    keys, values = torch.randn(2, 128, head_dim, dtype=torch.float64, generator=generator)
    tokens = torch.tensor([ord(letter) for letter in letters])
    q, k, v = 2 * keys[tokens], 2 * keys[tokens], values[tokens]  # equal letters attend most
    y, s, z = (torch.stack(x) for x in zip(*by_hand.as_rnn(q, k, v, feature_map), strict=True))
    weights = by_hand.as_matrix(q, k, torch.eye(len(letters), dtype=q.dtype), feature_map)
    return Walk(letters, weights, by_hand.as_matrix(q, k, v, feature_map), y, s, z)


def cache_numbers(n: int, head_dim: int) -> int:
    """What softmax attention keeps of n positions: their keys and values."""
    return 2 * n * head_dim


def cache_operations(n: int, head_dim: int) -> int:
    """Additions and multiplications of softmax attention at position n, exp counted as one: scores,
    softmax, and the sum of values."""
    return n * (2 * head_dim + 3 + 2 * head_dim)


def state_operations(n_features: int, head_dim: int) -> int:
    """The same of linear attention at any position, without φ: the state's update, and its read."""
    return (2 * n_features * head_dim + n_features) + (2 * n_features * head_dim + 2 * n_features)


def first_above(count: Callable[[int, int], int], limit: int, head_dim: int) -> int:
    """The first position at which softmax attention needs more than that."""
    return limit // count(1, head_dim) + 1


def picture(shown: Walk, position: int) -> mo.Html:
    """The walk after a position (from 1 on)."""
    i = position - 1
    n, n_features, head_dim = len(shown.letters), *shown.s.shape[1:]
    off = (shown.by_matrix - shown.by_rnn)[:position].abs().max().item()
    row = f'<rect class="r-row" x="0" y="{i}" width="{n}" height="1"/>'
    read = "".join(
        f"<span{' class=r-now' * (j == i)}{' class=r-later' * (j > i)}>{html.escape(letter)}</span>"
        for j, letter in enumerate(shown.letters.replace(" ", "␣"))
    )
    figures = [
        _figure(
            "As a matrix",
            _heat(torch.where(_rows(n) <= i, shown.weights, 0), "weights", row),
            f"Row {position} has {position} weights: every key so far is needed to compute it.",
        ),
        _figure(
            "As an RNN: the state",
            f'<div class="r-state">{_heat(shown.s[i], "S", of=shown.s)}'
            f"{_heat(shown.z[i, :, None], 'z', of=shown.z)}</div>",
            f"S ({n_features} × {head_dim}) and z ({n_features}) stand for that row and for all "
            "before it.",
        ),
        _figure(
            f"Output at position {position}",
            f"<span>matrix</span>{_heat(shown.by_matrix[i, None], 'matrix', of=shown.by_matrix)}"
            f"<span>RNN</span>{_heat(shown.by_rnn[i, None], 'RNN', of=shown.by_rnn)}",
            f"Largest difference so far: {off:z.1e}"
            + (", rounding of float64." if off else ": the same numbers."),
        ),
        _figure("Memory for the next token", _memory(shown, position), _costs(shown, position)),
    ]
    key = (
        f'<p class="r-note">{_swatch(LINEAR)} positive, {_swatch(NEUTRAL)} negative; the stronger '
        "the colour, the larger the number.</p>"
    )
    return layout.styled(
        f'<div class="r-letters" aria-label="position {position} of {n}">{read}</div>'
        f'<div class="r-grid" style="--least:14rem">{"".join(figures)}</div>{key}'
    )


def _rows(n: int) -> Tensor:
    return torch.arange(n)[:, None]


def _figure(title: str, body: str, caption: str) -> str:
    return (
        f'<figure class="r-step"><strong>{title}</strong>{body}'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _heat(values: Tensor, name: str, above: str = "", of: Tensor | None = None) -> str:
    """A matrix as coloured squares, as strong as its numbers are beside the largest of `of`."""
    largest = (values if of is None else of).abs().max().item() or 1.0
    rows, columns = values.shape
    cells = "".join(
        f'<rect x="{x}" y="{y}" width="1" height="1" fill="{LINEAR if value > 0 else NEUTRAL}" '
        f'fill-opacity="{abs(value) / largest:z.3f}"/>'
        for y, row in enumerate(values.tolist())
        for x, value in enumerate(row)
        if value
    )
    size = f"--columns:{columns};--rows:{rows}"
    return (
        f'<svg class="r-heat" role="img" aria-label="{name}, {rows} × {columns}" style="{size}" '
        f'viewBox="0 0 {columns} {rows}">{cells}{above}</svg>'
    )


def _memory(shown: Walk, position: int) -> str:
    """Bytes of cache and of state against the position, as lines with a point at this one."""
    n, head_dim = len(shown.letters), shown.s.shape[2]
    cache = [cache_numbers(j, head_dim) for j in range(1, n + 1)]
    most, (width, height) = max(*cache, shown.state_numbers), PLOT

    def place(j: int, numbers: int) -> tuple[float, float]:
        return (4 + (width - 8) * j / n, 4 + (height - 8) * (1 - numbers / most))

    def line(numbers: list[int], colour: str) -> str:
        points = " ".join("{:z.1f},{:z.1f}".format(*place(j + 1, x)) for j, x in enumerate(numbers))
        x, y = place(position, numbers[position - 1])
        return (
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>'
            f'<circle cx="{x:z.1f}" cy="{y:z.1f}" r="4" fill="{colour}"/>'
        )

    lines = line(cache, SOFTMAX) + line([shown.state_numbers] * n, LINEAR)
    told = "bytes of the softmax cache, which grow, and of the state, which do not"
    return (
        f'<svg class="r-lines" role="img" aria-label="{told}" '
        f'viewBox="0 0 {width} {height}">{lines}</svg>'
    )


def _costs(shown: Walk, position: int) -> str:
    """What the next token needs, of both kinds, as a table."""
    n_features, head_dim = shown.s.shape[1:]
    bytes_held = (
        NUMBER_BYTES * cache_numbers(position, head_dim),
        NUMBER_BYTES * shown.state_numbers,
    )
    operations = (
        cache_operations(position + 1, head_dim),
        state_operations(n_features, head_dim),
    )
    lines = "".join(
        f'<tr><th scope="row">{name}</th><td>{softmax:,}</td><td>{linear:,}</td></tr>'
        for name, (softmax, linear) in (("bytes kept", bytes_held), ("operations", operations))
    )
    return (
        f'<table class="r-cost"><tr><td></td><th scope="col">{_swatch(SOFTMAX)} softmax, cache</th>'
        f'<th scope="col">{_swatch(LINEAR)} linear, state</th></tr>{lines}</table>'
    )


def _swatch(colour: str) -> str:
    return f'<span class="r-swatch" style="background:{colour}"></span>'


def at_real_size() -> str:
    """From where on the state is the cheaper one in a head of a common size."""
    d = REAL_HEAD_DIM
    memory = first_above(cache_numbers, d * d + d, d)
    operations = first_above(cache_operations, state_operations(d, d), d)
    return (
        f"In a head of {d}, a common size, the cache is larger than the state from position "
        f"{memory} on, and takes more operations from position {operations} on. Operations are not "
        "yet seconds: what the clock says is claim 3."
    )
