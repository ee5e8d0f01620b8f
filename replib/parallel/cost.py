"""What a layer sends from rank to rank in one pass, forward or backward, and how long that takes.

B batch, G heads of keys, N sequence length, R feature size, M value size, D key size of softmax
attention, W ranks. S is what of a layer travels: of linear attention B G R (M + 1) numbers, of the
delta rule B G R M, and with A, where the maps themselves travel, B G R (M + R). None of it has N.
"""

import math
from dataclasses import dataclass

FLOAT32_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class Layer:
    """Attention of one layer over a sequence; `rule` is "sum" or "delta".

    Raises:
        ValueError: there is no such rule.
    """

    rule: str = "sum"
    batch_size: int = 1
    n_heads: int = 8
    n_features: int = 64
    value_dim: int = 64
    itemsize: int = FLOAT32_BYTES

    def __post_init__(self):
        if self.rule not in ("sum", "delta"):
            raise ValueError(f"rule {self.rule!r}: use sum or delta")

    @property
    def state_bytes(self) -> int:
        """Of the state, as a ring sends it."""
        return self._bytes(self.n_features * (self.value_dim + (self.rule == "sum")))

    @property
    def effect_bytes(self) -> int:
        """Of what a part does to any state, as an all-gather sends it."""
        keep = self.n_features**2 if self.rule == "delta" else 0
        return self.state_bytes + self._bytes(keep)

    def keys_values_bytes(self, n: int) -> int:
        """Of the keys and values of n tokens, which ranks with softmax attention send, where a key
        is of the value's size."""
        return self._bytes(2 * n * self.value_dim)

    def _bytes(self, numbers: int) -> int:
        return self.batch_size * self.n_heads * numbers * self.itemsize


@dataclass(frozen=True, kw_only=True)
class Link:
    """Between two ranks: seconds before the first byte, and bytes a second after it."""

    latency_s: float
    bandwidth: float

    def seconds(self, n_bytes: float) -> float:
        return self.latency_s + n_bytes / self.bandwidth


SCHEMES = ("ring", "all-gather", "all-scan", "softmax ring")


def sent_bytes(scheme: str, layer: Layer, size: int, seq_len: int = 0) -> int:
    """What all W ranks together send in a pass, one way: a ring or an all-scan W - 1 states, an
    all-gather W (W - 1) maps, and a ring of softmax attention (Ring Attention, Liu et al. 2023)
    W - 1 times the keys and values of all N tokens.

    Raises:
        ValueError: there is no such scheme.
    """
    n_bytes = {
        "ring": layer.state_bytes,
        "all-gather": size * layer.effect_bytes,
        "all-scan": layer.state_bytes,
        "softmax ring": layer.keys_values_bytes(seq_len),
    }
    return (size - 1) * n_bytes[_known(scheme)]


def seconds(scheme: str, layer: Layer, size: int, link: Link, seq_len: int = 0) -> float:
    """From the first message of a pass to the last, of ranks that are all ready: the ring and the
    all-gather, itself a ring of gloo's or nccl's, take W - 1 hops; the all-scan (ZeCO, Chou et al.
    2025) cuts the state in K blocks that follow one another, W - 2 + K hops of a K-th of it, here
    with the best K.

    Raises:
        ValueError: there is no such scheme.
    """
    if _known(scheme) == "all-scan" and size > 1:
        k = best_blocks(layer, size, link)
        return (size - 2 + k) * link.seconds(layer.state_bytes / k)
    n_bytes = {
        "ring": layer.state_bytes,
        "all-gather": layer.effect_bytes,
        "all-scan": 0,
        "softmax ring": layer.keys_values_bytes(seq_len) / size,
    }
    return (size - 1) * link.seconds(n_bytes[scheme])


def best_blocks(layer: Layer, size: int, link: Link) -> int:
    """K of an all-scan: √((W - 2) S / (α β)), at least 1, where its time is least."""
    best = math.sqrt((size - 2) * layer.state_bytes / (link.latency_s * link.bandwidth))
    nearest = (max(1, math.floor(best)), math.ceil(best) or 1)
    return min(nearest, key=lambda k: (size - 2 + k) * link.seconds(layer.state_bytes / k))


def same_bytes_at(layer: Layer, size: int) -> float:
    """The N from which on a softmax hop of N / W tokens is larger than a state."""
    return size * layer.state_bytes / layer.keys_values_bytes(1)


def _known(scheme: str) -> str:
    if scheme not in SCHEMES:
        raise ValueError(f"scheme {scheme!r}: use {', '.join(SCHEMES)}")
    return scheme
