"""The delta rule of *Linear Transformers Are Secretly Fast Weight Memory Systems* (Schlag, Irie &
Schmidhuber 2021, section 4.2): a memory whose writes correct what it already holds.

B batch, H heads, N sequence length, L number of queries, R feature size, M value size per head.
Queries and keys are features already, φ(q) and φ(k) in the paper; β (`beta`) are the write
strengths. The paper's W (M, R) is kept transposed: `DeltaState.s` is Wᵀ (R, M).
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from replib.attention.base import Attention, check_qkv
from replib.attention.feature_maps import DPFP_NU, dpfp
from replib.kernels import delta, installed, refusal, why_not

# Ways to compute the same function, all positions and after the last write.
KERNELS, RETRIEVAL_KERNELS = ("torch", "cpu", "plain"), ("torch", "plain")

# ν of the features of `DeltaAttention`, DPFP-ν with R = 2·D·ν, where no implementation names it.
NU = 1
EPS = 1e-6  # added to the sum of a token's features, as in the published code
# A kernel's share of a matrix product's rate, at R = 64 and M = 32 on a 2-core AMD EPYC; "plain" is
# bound by its calls, and its share is a guess.
EFFICIENCY = {"torch": 0.1, "cpu": 0.3, "plain": 0.01}


def delta_rule(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, *, kernel: str | None = None
) -> Tensor:
    """W_i = W_{i-1} + β_i (v_i - v̄_i) k_iᵀ with v̄_i = W_{i-1} k_i, and y_i = W_i q_i; W_0 = 0.

    Schlag et al. 2021, section 4.2. Where β = 0 nothing is written; where β = 1 and k_i has norm 1,
    reading with k_i then returns v_i. W stays bounded where β_i |k_i|² <= 2, as in the paper, whose
    features sum to 1; beyond it may grow without bound, with any kernel. Sums are taken in float32
    or wider. Memory grows as N·(R + M).

    Args:
        q, k: (B, H, N, R), features already; v: (B, H, N, M); beta: (B, H, N).
        kernel: "plain" is the loop over positions; "torch" takes a chunk of positions at a time,
            and "cpu" too, compiled; None takes the fastest for the device, dtypes and sizes.

    Returns:
        (B, H, N, M), in the dtype of v.

    Raises:
        ValueError: shapes disagree, or the kernel is unknown or cannot take these tensors.
    """
    _check(q, k, v, beta)
    if q.shape[2] != k.shape[2]:
        raise ValueError(
            f"{q.shape[2]} queries and {k.shape[2]} writes: give a query for each write, or use "
            "delta_retrieve to read after the last"
        )
    refused = refusal("cpu", q, k, v, beta)
    kernel = _resolve(kernel or ("torch" if refused else "cpu"), KERNELS)
    if kernel == "cpu":
        if refused:
            raise ValueError(refused)
        from replib.kernels import delta_cpu

        return delta_cpu.delta_rule(q, k, v, beta)
    return (_plain if kernel == "plain" else delta.delta_rule)(q, k, v, beta)


def delta_retrieve(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, *, kernel: str | None = None
) -> Tensor:
    """y_l = W_N q_l: what queries read after the last write of `delta_rule`.

    Args:
        q: (B, H, L, R) and k: (B, H, N, R), features already; v: (B, H, N, M); beta: (B, H, N).
        kernel: "plain" is the loop over writes; "torch" never forms W unless L exceeds R; None
            takes the fastest.

    Returns:
        (B, H, L, M), in the dtype of v. The unit vectors as queries read Wᵀ itself.

    Raises:
        ValueError: shapes disagree, or the kernel is unknown.
    """
    _check(q, k, v, beta)
    kernel = _resolve(kernel or "torch", RETRIEVAL_KERNELS)
    return (_plain_retrieve if kernel == "plain" else delta.retrieve)(q, k, v, beta)


class DeltaState(NamedTuple):
    """s = Wᵀ (B, H, R, M)."""

    s: Tensor


def init_state(
    batch_size: int,
    n_heads: int,
    feature_size: int,
    value_dim: int,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> DeltaState:
    """The empty memory, in float32 or wider."""
    wide = torch.promote_types(dtype, torch.float32)
    shape = (batch_size, n_heads, feature_size, value_dim)
    return DeltaState(torch.zeros(shape, dtype=wide, device=device))


def step(
    state: DeltaState, q: Tensor, k: Tensor, v: Tensor, beta: Tensor
) -> tuple[Tensor, DeltaState]:
    """One write, then one read: q, k (B, H, R), v (B, H, M), beta (B, H) -> y (B, H, M)."""
    s = state.s.flatten(0, 1)
    with torch.autocast(s.device.type, enabled=False):
        query, key, value = (x.flatten(0, 1).unsqueeze(1).to(s.dtype) for x in (q, k, v))
        s = _write(s, key, value, beta.reshape(-1, 1, 1).to(s.dtype))
        y = torch.bmm(query, s)
    return y.view(v.shape).to(v.dtype), DeltaState(s.view(state.s.shape))


def _write(s: Tensor, key: Tensor, value: Tensor, beta: Tensor) -> Tensor:
    """s (B·H, R, M), key (B·H, 1, R), value (B·H, 1, M), beta (B·H, 1, 1)."""
    error = torch.baddbmm(value, key, s, alpha=-1)
    return torch.baddbmm(s, key.mT, beta * error)


def _plain(q: Tensor, k: Tensor, v: Tensor, beta: Tensor) -> Tensor:
    with torch.autocast(q.device.type, enabled=False):
        s, y = _empty(k, v), []
        for query, *write in _rows(s.dtype, q, k, v, beta.unsqueeze(-1)):
            s = _write(s, *write)
            y.append(torch.bmm(query, s))
    return torch.cat(y, dim=1).view(v.shape).to(v.dtype)


def _plain_retrieve(q: Tensor, k: Tensor, v: Tensor, beta: Tensor) -> Tensor:
    with torch.autocast(q.device.type, enabled=False):
        s = _empty(k, v)
        for write in _rows(s.dtype, k, v, beta.unsqueeze(-1)):
            s = _write(s, *write)
        y = torch.bmm(q.flatten(0, 1).to(s.dtype), s)
    return y.unflatten(0, q.shape[:2]).to(v.dtype)


def _empty(k: Tensor, v: Tensor) -> Tensor:
    sizes = (*k.shape[:2], k.shape[-1], v.shape[-1])
    dtype = torch.promote_types(k.dtype, v.dtype)
    return init_state(*sizes, dtype=dtype, device=k.device).s.flatten(0, 1)


def _rows(dtype: torch.dtype, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """A (B·H, 1, size) of each tensor a position. A slice at each position would cost O(N²) in the
    backward pass, `unbind` costs it once."""
    return zip(*(x.to(dtype).flatten(0, 1).unsqueeze(2).unbind(1) for x in tensors), strict=True)


def _resolve(kernel: str, known: tuple[str, ...]) -> str:
    if kernel not in known:
        raise ValueError(f"the delta rule has no kernel {kernel!r} here: use {', '.join(known)}")
    return kernel


def _check(q: Tensor, k: Tensor, v: Tensor, beta: Tensor) -> None:
    check_qkv(q, k, v, causal=False, key_padding_mask=None)
    if beta.shape != k.shape[:3]:
        raise ValueError(
            f"beta has shape {tuple(beta.shape)}: use {tuple(k.shape[:3])}, one for each write"
        )


class DeltaAttention(Attention):
    """The delta rule with DPFP features that sum to 1 (Schlag et al. 2021, section 4.2), so that
    nothing but the features normalises what is read.

    Deviation: the paper's β is a projection of the layer's input, here it is one of the head's key,
    which is a projection of that input: σ(w·k + b), w and b learned for each head and 0 at first.

    The implementation is a kernel, with ν = 1, or "nu2" or "nu3" with the fastest kernel. Features
    of both signs, such as tanh, are not offered: their sum normalises nothing, and without it the
    memory may grow without bound; `fwm` has them.

    Not causal, every query reads the memory after the last write.
    """

    label = "delta rule"
    implementations = (*KERNELS, *(f"nu{nu}" for nu in DPFP_NU if nu != NU))
    recurrent = True
    sources = ("replib.attention.feature_maps", "replib.kernels")

    def __init__(self, *, n_heads: int, head_dim: int, implementation: str | None = None):
        super().__init__(implementation=implementation)
        self.to_beta = nn.Parameter(torch.zeros(n_heads, head_dim))
        self.beta_bias = nn.Parameter(torch.zeros(n_heads))

    @classmethod
    def for_model(cls, *, n_heads, head_dim, max_len, implementation=None) -> Attention:
        return cls(n_heads=n_heads, head_dim=head_dim, implementation=implementation)

    @classmethod
    def nu(cls, implementation: str | None) -> int:
        """ν of an implementation."""
        name = cls.resolve(implementation)
        return NU if name in KERNELS else int(name.removeprefix("nu"))

    @classmethod
    def n_features(cls, head_dim: int, implementation: str | None = None) -> int:
        """R, for keys of size D."""
        return 2 * head_dim * cls.nu(implementation)

    def forward(self, q, k, v, *, causal=True, key_padding_mask=None):
        check_qkv(q, k, v, causal=causal, key_padding_mask=key_padding_mask)
        with torch.autocast(q.device.type, enabled=False):
            beta, nu = self._beta(k, "bhnd,hd->bhn"), self.nu(self.implementation)
            q, k = _normalised(q, nu), _normalised(k, nu)
        if causal:
            kernel = self.implementation if self.implementation in KERNELS else None
            return delta_rule(q, k, v, beta, kernel=kernel)
        if key_padding_mask is not None:
            beta = beta.masked_fill(key_padding_mask[:, None], 0)
        kernel = self.implementation if self.implementation in RETRIEVAL_KERNELS else None
        return delta_retrieve(q, k, v, beta, kernel=kernel)

    def init_state(
        self,
        batch_size,
        n_heads,
        head_dim,
        value_dim=None,
        *,
        dtype=torch.float32,
        device="cpu",
        max_len=None,
    ) -> DeltaState:
        n_features = self.n_features(head_dim, self.implementation)
        sizes = (batch_size, n_heads, n_features, value_dim or head_dim)
        return init_state(*sizes, dtype=dtype, device=device)

    def step(self, state: DeltaState, q, k, v):
        beta, nu = self._beta(k, "bhd,hd->bh"), self.nu(self.implementation)
        return step(state, _normalised(q, nu), _normalised(k, nu), v, beta)

    def _beta(self, k: Tensor, sizes: str) -> Tensor:
        k = _wide(k)
        w, b = self.to_beta.to(k.dtype), self.beta_bias.to(k.dtype)
        b = b.unsqueeze(-1) if k.dim() == 4 else b
        return torch.sigmoid(torch.einsum(sizes, k, w) + b)

    @classmethod
    def unavailable(cls, implementation, *, device_type, dtype, head_dim):
        if implementation != "cpu":
            return None
        sizes = {"head_dim": cls.n_features(head_dim, implementation), "value_dim": head_dim}
        # The features are float32 or wider, the values of this dtype.
        return why_not(implementation, device_type=device_type, dtype=dtype, **sizes)

    @classmethod
    def peak_bytes(
        cls,
        *,
        batch_size,
        n_heads,
        seq_len,
        head_dim,
        itemsize,
        backward,
        implementation=None,
    ):
        rows, r = batch_size * n_heads * seq_len, cls.n_features(head_dim, implementation)
        if cls.resolve(implementation) == "plain" and backward:  # a memory for each position
            return rows * r * head_dim * max(itemsize, 4) * 3
        return rows * (r + head_dim) * max(itemsize, 4) * (10 if backward else 5)

    @classmethod
    def operations(cls, *, seq_len, head_dim, causal, implementation=None):
        fastest = "cpu" if installed("numba") else "torch"
        kernel = implementation if implementation in KERNELS else fastest
        r = cls.n_features(head_dim, implementation)
        per_token = delta.operations_per_token(r, head_dim, backward=False)
        return seq_len * per_token / EFFICIENCY[kernel]


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _normalised(x: Tensor, nu: int) -> Tensor:
    """DPFP-ν features that sum to 1, (..., D) -> (..., R); all 0 where no feature is above 0."""
    features = dpfp(_wide(x), nu)
    return features / (features.sum(-1, keepdim=True) + EPS)
