"""A fast weight memory that is filled with random keys, write by write, as the equations stand.

S keys, T writes, D key size, R feature size, M value size. The memory W (M, R) holds what keys were
given, and a key with the features f (R) reads W f. A write of the value v (M) to f does (Schlag,
Irie & Schmidhuber 2021, section 4.2)

    sum     W ← W + v fᵀ                    read: W f / z·f, with z the sum of all written f
    delta   W ← W + β (v - W f) fᵀ
    fwm     as delta, and then W ← W / max(1, |W|), but for the first write

Everything is in float64 and nothing is trained: features of random keys overlap, and what a key
reads beside its own value, its crosstalk, is what training has to avoid.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from replib.attention.base import Options
from replib.attention.feature_maps import orthogonal_directions
from replib.fast_weights import FEATURES, SMALLEST, UPDATE_RULES, MemoryConfig, features

SIGNED = ("tanh",)  # features of both signs: their sum, a normaliser, may be near 0
MEMORIES = tuple(name for name in FEATURES if name != "softmax")  # softmax keeps all keys instead
SCALES = ("length 1", "sum 1", "none")
VALUES = ("one-hot", "random")
MAX_KEYS = 1024
RANK_TOLERANCE = 1e-9  # of the largest eigenvalue: what is below is 0 but for rounding


@dataclass(frozen=True, kw_only=True)
class FillConfig:
    """A filling: S random keys written one after the other, then some of them again.

    Attributes:
        attention, options: the features, as in `MemoryConfig`.
        n_again: how many keys, from the first on, are written once more with new values.
        values: "one-hot", a unit vector each (M = S + n_again), or "random" of length 1 (M = D).
        scale: what features are divided by for the rules delta and fwm: their length, their sum
            (delta as published) or nothing (fwm as published).
        strength: β of every write.

    Raises:
        ValueError: a value out of range, or a sum of features of both signs.
    """

    n_keys: int = 40
    head_dim: int = 16
    attention: str = "dpfp"
    options: Options | None = None
    n_again: int = 1
    values: str = "one-hot"
    scale: str = "length 1"
    strength: float = 1.0
    seed: int = 0

    def __post_init__(self):
        for name, known in (("attention", MEMORIES), ("values", VALUES), ("scale", SCALES)):
            if getattr(self, name) not in known:
                raise ValueError(f"unknown {name} {getattr(self, name)!r}: use {', '.join(known)}")
        if not 1 <= self.n_keys <= MAX_KEYS:
            raise ValueError(f"n_keys {self.n_keys}: use 1 to {MAX_KEYS}")
        if not 0 <= self.n_again <= self.n_keys:
            raise ValueError(f"n_again {self.n_again} of {self.n_keys} keys: use 0 to that many")
        if not 0 < self.strength <= 1:
            raise ValueError(f"strength {self.strength}: use above 0, at most 1")
        if self.scale == "sum 1" and self.attention in SIGNED:
            raise ValueError(
                f"{self.attention} features have both signs, so that their sum may be 0: scale "
                "them to length 1"
            )
        _ = self.memory

    @property
    def memory(self) -> MemoryConfig:
        """The feature map and its sizes."""
        sizes = {"options": self.options, "head_dim": self.head_dim}
        return MemoryConfig(attention=self.attention, **sizes)

    @property
    def n_features(self) -> int:
        """R."""
        return self.memory.n_features

    @property
    def n_writes(self) -> int:
        """T."""
        return self.n_keys + self.n_again


@dataclass(frozen=True)
class Writes:
    """What is written: `features` of the S keys (S, R), the key of each write (T,), and its value
    (T, M)."""

    config: FillConfig
    features: Tensor
    keys: Tensor
    values: Tensor

    def written(self, rule: str) -> Tensor:
        """The features (S, R) that a rule writes to and reads with."""
        if rule == "sum" or self.config.scale == "none":
            return self.features
        if self.config.scale == "sum 1":
            return self.features / (self.features.sum(-1, keepdim=True) + SMALLEST)
        return unit_rows(self.features)

    def last_write(self, n_writes: int) -> Tensor:
        """The last of the first writes to each key (S,), -1 where there is none."""
        last = torch.full((self.config.n_keys,), -1)
        last[self.keys[:n_writes]] = torch.arange(n_writes)
        return last


def draw(config: FillConfig) -> Writes:
    """Random keys N(0, 1) and their values; the first keys are the same however many there are.

    Deviation: keys of "performer" are divided by D^(1/4), as in attention; the published retrieval
    code does not, and its features of random keys differ by many powers of ten.
    """
    first, again = torch.arange(config.n_keys), torch.arange(config.n_again)
    if config.values == "one-hot":
        values = torch.eye(config.n_writes, dtype=torch.float64)
    else:
        values = unit_rows(_normal(config, 1, config.n_writes))
    return Writes(config, key_features(config, config.n_keys), torch.cat([first, again]), values)


def key_features(config: FillConfig, n_keys: int) -> Tensor:
    """φ of the first random keys (n_keys, R)."""
    x, directions = _normal(config, 0, n_keys), None
    if config.attention == "performer":
        generator = torch.Generator().manual_seed(3 * config.seed + 2)
        sizes = config.head_dim, config.memory.size
        directions = orthogonal_directions(*sizes, generator, dtype=torch.float64)
        x = x / config.head_dim**0.25
    return features(x, config.memory, directions)


def _normal(config: FillConfig, stream: int, n_rows: int) -> Tensor:
    """Rows that do not depend on how many there are, as those of torch's generators do."""
    generator = torch.Generator().manual_seed(3 * config.seed + stream)
    drawn = torch.randn(2 * MAX_KEYS, config.head_dim, generator=generator, dtype=torch.float64)
    return drawn[:n_rows]


def unit_rows(x: Tensor) -> Tensor:
    """Each row divided by its length; a row of zeros stays."""
    return x / (x.norm(dim=-1, keepdim=True) + SMALLEST)


@dataclass(frozen=True)
class Filling:
    """A memory along its writes.

    Attributes:
        reads: (T + 1, S, M), what every key reads before the first write and after each.
        added: (T, M), what each write adds to the memory, times the features of its key.
        divisors: (T,), what the memory is divided by after each write: 1, but for "fwm".
    """

    writes: Writes
    rule: str
    reads: Tensor
    added: Tensor
    divisors: Tensor

    def memory(self, n_writes: int) -> Tensor:
        """W (M, R) after the first writes: what they added and what later divisions left of it."""
        kept = 1 / self.divisors[:n_writes].flip(0).cumprod(0).flip(0)
        keys = self.writes.written(self.rule)[self.writes.keys[:n_writes]]
        return (self.added[:n_writes] * kept.unsqueeze(-1)).mT @ keys

    def losses(self) -> list[float]:
        """0.5·|read - last value|², the mean over the keys written so far, after 1 ... T writes."""
        found = []
        for n_writes in range(1, len(self.reads)):
            last = self.writes.last_write(n_writes)
            known = last >= 0
            error = self.reads[n_writes, known] - self.writes.values[last[known]]
            found.append(error.square().sum(-1).mean().item() / 2)
        return found


def fill(writes: Writes, rule: str) -> Filling:
    """Write everything. What all keys read follows from what they read before,

        Y ← (Y + F f aᵀ) / c,     a = v or β (v - Y of the key),

    with the features F (S, R) of all keys, so that W, which may be large, need not be formed.

    Deviation: features of both signs are read without a normaliser by "sum" too; and "fwm" without
    the layer normalisation that follows it in a model.

    Raises:
        ValueError: an unknown rule.
    """
    if rule not in UPDATE_RULES:
        raise ValueError(f"unknown rule {rule!r}: use {', '.join(UPDATE_RULES)}")
    f, strength = writes.written(rule), writes.config.strength
    products = f @ f.mT  # (S, S)
    y = torch.zeros(len(f), writes.values.shape[1], dtype=f.dtype)
    reads, added, divisors, norm = [y], [], [], 0.0
    for i, (key, value) in enumerate(zip(writes.keys.tolist(), writes.values, strict=True)):
        a = value if rule == "sum" else strength * (value - y[key])
        norm = max(0.0, norm + (2 * a @ y[key] + a @ a * products[key, key]).item())  # |W|²
        divisor = max(1.0, norm) ** 0.5 if rule == "fwm" and i > 0 else 1.0
        y = (y + torch.outer(products[key], a)) / divisor
        norm /= divisor**2
        reads.append(y)
        added.append(a)
        divisors.append(divisor)
    along = torch.stack(reads)
    if rule == "sum" and writes.config.attention not in SIGNED:
        sums = products[:, writes.keys].cumsum(1).mT  # (T, S)
        along[1:] /= (sums + SMALLEST).unsqueeze(-1)
    return Filling(writes, rule, along, torch.stack(added), torch.tensor(divisors, dtype=f.dtype))


def similarity(x: Tensor) -> Tensor:
    """The cosines between rows of features, (S, R) -> (S, S): 0 off the diagonal is no crosstalk,
    and a memory of R features has room for at most R such rows."""
    x = unit_rows(x)
    return x @ x.mT


def eigenvalues(x: Tensor) -> Tensor:
    """Of `similarity`, the largest first, min(S, R) of them; the others are 0."""
    x = unit_rows(x)
    gram = x @ x.mT if len(x) <= x.shape[1] else x.mT @ x
    return torch.linalg.eigvalsh(gram).flip(0).clamp(min=0)


def rank(values: Tensor) -> int:
    """How many eigenvalues are above rounding."""
    return int((values > RANK_TOLERANCE * values[0]).sum())


def effective_rank(values: Tensor) -> float:
    """exp of the entropy of the eigenvalues as shares (Roy & Vetterli 2007): n of equal size give
    n, and one that is above all others gives 1."""
    shares = values / values.sum()
    return math.exp(torch.special.entr(shares).sum().item())
