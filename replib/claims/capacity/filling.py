"""A fast weight memory that is filled with random keys, write by write, as the equations stand.

S keys, T writes, D key size, R feature size, M = T components of a value. Values are unit vectors,
a new one each write, so that what is read of a component is how much of that write is left.
Everything is in float64 and nothing is trained: features of random keys overlap, and what a key
reads beside its own value, its crosstalk, is what training has to avoid.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from replib.attention.feature_maps import orthogonal_directions
from replib.fast_weights import SMALLEST, UPDATE_RULES, MemoryConfig, features

MAX_KEYS = 1024


@dataclass(frozen=True, kw_only=True)
class FillConfig:
    """A filling: S random keys written one after the other, then some of them again.

    Attributes:
        memory: the features, and D.
        n_again: how many keys, from the first on, are written once more with new values.
        strength: β of every write.

    Raises:
        ValueError: a value out of range; softmax, which keeps all keys instead; "tanh", the sum of
            whose features, which are of both signs, may be 0.
    """

    n_keys: int = 24
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    n_again: int = 4
    strength: float = 1.0
    seed: int = 0

    def __post_init__(self):
        if self.memory.attention in ("softmax", "tanh"):
            raise ValueError(f"{self.memory.attention} fills no memory here: use linear or dpfp")
        if not 1 <= self.n_keys <= MAX_KEYS:
            raise ValueError(f"n_keys {self.n_keys}: use 1 to {MAX_KEYS}")
        if not 0 <= self.n_again <= self.n_keys:
            raise ValueError(f"n_again {self.n_again} of {self.n_keys} keys: use 0 to that many")
        if not 0 < self.strength <= 1:
            raise ValueError(f"strength {self.strength}: use above 0, at most 1")

    @property
    def n_writes(self) -> int:
        """T."""
        return self.n_keys + self.n_again

    @property
    def written(self) -> Tensor:
        """The key of each write (T,)."""
        return torch.cat([torch.arange(self.n_keys), torch.arange(self.n_again)])

    @property
    def last_writes(self) -> Tensor:
        """The last write to each key after none, one ... T of them (T + 1, S); -1 for none."""
        last = torch.full((self.n_writes + 1, self.n_keys), -1)
        for write, key in enumerate(self.written.tolist()):
            last[write + 1 :, key] = write
        return last


def write(w: Tensor, f: Tensor, v: Tensor, rule: str, beta: float = 1.0) -> Tensor:
    """The memory after one write of the value v (M,) to a key's features f (R,): (M, R) -> (M, R).

    The rules of Schlag, Irie & Schmidhuber 2021, section 4.2; "fwm" is the one before theirs, here
    without the layer normalisation that follows it in a model.
    """
    if rule == "sum":
        return w + torch.outer(v, f)
    w = w + beta * torch.outer(v - w @ f, f)  # w @ f: what the key reads so far
    return w / w.norm().clamp(min=1) if rule == "fwm" else w


@dataclass(frozen=True)
class Filling:
    """A memory along its writes.

    Attributes:
        w: (T + 1, M, R), before the first write and after each.
        reads: (T + 1, S, M), what every key reads of it.
    """

    config: FillConfig
    w: Tensor
    reads: Tensor

    @property
    def losses(self) -> Tensor:
        """0.5·|read - last value|², the mean over the keys written so far, after 1 ... T writes."""
        last = self.config.last_writes[1:]
        reads, known = self.reads[1:], last >= 0
        right = reads.gather(2, last.clamp(min=0).unsqueeze(2)).squeeze(2)
        errors = (reads.square().sum(2) - 2 * right + 1) / 2
        return (errors * known).sum(1) / known.sum(1)

    def shares(self) -> dict[str, float]:
        """What keys that were given a new value read of it, of the old one, and of all others (the
        length of that), in the mean; NaN where there are none."""
        n, again = self.config.n_keys, torch.arange(self.config.n_again)
        reads = self.reads[-1, again].clone()
        new, old = reads[again, n + again].mean(), reads[again, again].mean()
        reads[again, n + again] = reads[again, again] = 0
        parts = {"new value": new, "old value": old, "crosstalk": reads.norm(dim=1).mean()}
        return {name: value.item() for name, value in parts.items()}


def fill(config: FillConfig, rule: str) -> Filling:
    """Write everything. A sum is read over its normaliser, W f / z·f with z the sum of all that was
    written.

    Deviation: by the rules "delta" and "fwm" features are divided by their length, so that β = 1
    replaces a value; published are features that sum to 1, of which training finds sparse ones.

    Raises:
        ValueError: an unknown rule.
    """
    if rule not in UPDATE_RULES:
        raise ValueError(f"unknown rule {rule!r}: use {', '.join(UPDATE_RULES)}")
    f = key_features(config, config.n_keys)
    f = f if rule == "sum" else f / (f.norm(dim=1, keepdim=True) + SMALLEST)
    states = [f.new_zeros(config.n_writes, f.shape[1])]
    for key, value in zip(config.written, torch.eye(config.n_writes, dtype=f.dtype), strict=True):
        states.append(write(states[-1], f[key], value, rule, config.strength))
    w = torch.stack(states)
    reads = torch.einsum("tmr,sr->tsm", w, f)
    if rule == "sum":
        z = f[config.written].cumsum(0)  # (T, R)
        reads[1:] /= (z @ f.mT + SMALLEST).unsqueeze(2)
    return Filling(config, w, reads)


def key_features(config: FillConfig, n_keys: int) -> Tensor:
    """φ of random keys N(0, 1), (n_keys, R); the first are the same however many there are.

    Deviation: keys of "performer" are divided by D^(1/4), as in attention; the published retrieval
    code does not, and its features of random keys differ by many powers of ten.
    """
    size, directions = config.memory.head_dim, None
    generator = torch.Generator().manual_seed(config.seed)
    # All of them, as torch draws other numbers where there are fewer.
    x = torch.randn(MAX_KEYS, size, generator=generator, dtype=torch.float64)[:n_keys]
    if config.memory.attention == "performer":
        directions = orthogonal_directions(size, config.memory.size, generator, dtype=x.dtype)
        x = x / size**0.25
    return features(x, config.memory, directions)
