"""The delta rule of *Linear Transformers Are Secretly Fast Weight Memory Systems* (Schlag, Irie &
Schmidhuber 2021, section 4.2): a memory whose writes correct what it already holds.

B batch, H heads, N sequence length, L number of queries, R feature size, M value size per head.
Queries and keys are features already, φ(q) and φ(k) in the paper; β (`beta`) are the write
strengths. The paper's W (M, R) is kept transposed: `DeltaState.s` is Wᵀ (R, M).
"""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from replib import plain
from replib.attention.base import Attention, check_qkv, repeat_heads
from replib.attention.dpfp import SUM_EPS, DPFPAttention, summing_to_1
from replib.attention.feature_maps import dpfp
from replib.attention.kernels import chunked_delta, refusal, why_not
from replib.attention.linear import LinearState, no_sums
from replib.attention.padding import without_padding
from replib.packing import packed
from replib.plain import without_autocast

# Ways to compute the same function, all positions and after the last write.
KERNELS, RETRIEVAL_KERNELS = ("torch", "cpu", "plain"), ("torch", "plain")


def delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    *,
    kernel: str | None = None,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """W_i = W_{i-1} + β_i (v_i - v̄_i) k_iᵀ with v̄_i = W_{i-1} k_i, and y_i = W_i q_i; W_0 = 0.

    Schlag et al. 2021, section 4.2. Where β = 0 nothing is written; where β = 1 and k_i has norm 1,
    reading with k_i then returns v_i. W stays bounded where β_i |k_i|² <= 2, as in the paper, whose
    features sum to 1; beyond it may grow without bound, with any kernel. Sums are taken in float32
    or wider. Memory grows as N·(R + M).

    Args:
        q, k: (B, H, N, R), features already; v: (B, H, N, M); beta: (B, H, N). The heads of k, v
            and beta may be a divisor of those of q.
        kernel: "plain" is the loop over positions; "torch" takes a chunk of positions at a time,
            and "cpu" too, compiled; None takes the fastest for the device, dtypes and sizes.
        cu_seqlens: (S + 1,), boundaries of S sequences one after the other in a batch of 1,
            each to be read and written alone; see `replib.packing.Packing`.

    Returns:
        (B, H, N, M), in the dtype of v.

    Raises:
        ValueError: shapes disagree, tensors are not of floating point numbers, or the kernel is
            unknown or cannot take these tensors.
    """
    if cu_seqlens is not None:
        return packed(partial(delta_rule, kernel=kernel), cu_seqlens, q, k, v, beta)
    _check(q, k, v, beta)
    if q.shape[2] != k.shape[2]:
        raise ValueError(
            f"{q.shape[2]} queries and {k.shape[2]} writes: give a query for each write, or use "
            "delta_retrieve to read after the last"
        )
    refused = refusal("cpu", q, k, v, beta)
    kernel = _resolve(kernel or ("torch" if refused else "cpu"), KERNELS)
    if kernel == "cpu" and refused:
        raise ValueError(refused)
    k, v, beta = (repeat_heads(x, q.shape[1]) for x in (k, v, beta))
    if 0 in (*q.shape, *v.shape):
        return _nothing(q, k, v, beta)
    if kernel == "cpu":
        from replib.kernels.delta import cpu

        return cpu.delta_rule(q, k, v, beta)
    if kernel == "torch" and chunked_delta is not None:
        return chunked_delta.delta_rule(q, k, v, beta)
    return plain.delta_rule(q, k, v, beta)


def delta_retrieve(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, *, kernel: str | None = None
) -> Tensor:
    """y_l = W_N q_l: what queries read after the last write of `delta_rule`.

    Args:
        q: (B, H, L, R) and k: (B, H, N, R), features already; v: (B, H, N, M); beta: (B, H, N).
            The heads of k, v and beta may be a divisor of those of q.
        kernel: "plain" is the loop over writes; "torch" never forms W unless L exceeds R; None
            takes the fastest.

    Returns:
        (B, H, L, M), in the dtype of v. The unit vectors as queries read Wᵀ itself.

    Raises:
        ValueError: shapes disagree, tensors are not of floating point numbers, or the kernel is
            unknown.
    """
    _check(q, k, v, beta)
    kernel = _resolve(kernel or "torch", RETRIEVAL_KERNELS)
    retrieve = _plain_retrieve
    if 0 in (*q.shape, *k.shape, *v.shape):
        retrieve = _nothing
    elif kernel == "torch" and chunked_delta is not None:
        retrieve = chunked_delta.retrieve
    grouped = q.unflatten(1, (k.shape[1], -1)).flatten(2, 3)  # (B, G, H/G · L, R)
    y = retrieve(grouped, k, v, beta)
    return y.unflatten(2, (q.shape[1] // k.shape[1], q.shape[2])).flatten(1, 2)


class DeltaState(NamedTuple):
    """s = Wᵀ (B, H, R, M); where what is read is divided by z·φ(q), a `LinearState` has z too."""

    s: Tensor


def read(s: Tensor, q: Tensor, n_groups: int) -> Tensor:
    """y = W q of one position: s (B·G, R, M), q (B, H, R) -> (B, H, M)."""
    b, h, r = q.shape
    query = q.reshape(b * n_groups, h // n_groups, r).to(s.dtype)
    return torch.bmm(query, s).view(b, h, s.shape[-1])


def _plain_retrieve(q: Tensor, k: Tensor, v: Tensor, beta: Tensor) -> Tensor:
    """Writes, one after the other, as in `plain.delta_rule`."""
    (b, h, _, r), m = k.shape, v.shape[-1]
    wide = torch.promote_types(torch.promote_types(k.dtype, v.dtype), torch.float32)
    with without_autocast(q.device.type):
        s = torch.zeros(b * h, r, m, dtype=wide, device=k.device)
        tensors = (k, v, beta.unsqueeze(-1))
        rows = (x.to(wide).flatten(0, 1).unsqueeze(2).unbind(1) for x in tensors)
        for row in zip(*rows, strict=True):
            _, s = plain.delta_write(s, *row)
        y = torch.bmm(q.flatten(0, 1).to(wide), s)
    return y.unflatten(0, q.shape[:2]).to(v.dtype)


def _nothing(q: Tensor, k: Tensor, v: Tensor, beta: Tensor) -> Tensor:
    """What is read where a size is 0: 0, as products without a term are."""
    with without_autocast(q.device.type):
        q, k, beta = (x.to(v.dtype) for x in (q, k, beta))
        return (q @ k.mT) @ (v * beta.unsqueeze(-1))


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
    `n_heads` are those of keys; given more, a key's head takes the first of its share.

    With the option `normalised` it has attention normalisation as well (the same section):
    y_i = W_i φ(q_i) / z_i·φ(q_i) and v̄_i = W_{i-1} φ(k_i) / z_{i-1}·φ(k_i), z_i = Σ_{j<=i} φ(k_j);
    v̄_i is 0 where z_{i-1}·φ(k_i) is.

    Features of both signs, such as tanh, are not offered: their sum normalises nothing, and without
    it the memory may grow without bound; `fwm` has them.

    Not causal, every query reads the memory after the last write.
    """

    Options = DPFPAttention.Options
    label = "delta rule"
    offered = DPFPAttention.offered
    kernels = KERNELS
    recurrent = True

    def __init__(self, *, n_heads: int, head_dim: int, options=None, kernel=None):
        super().__init__(options=options, kernel=kernel)
        self.to_beta = nn.Parameter(torch.zeros(n_heads, head_dim))
        self.beta_bias = nn.Parameter(torch.zeros(n_heads))

    @classmethod
    def for_model(cls, *, n_heads, head_dim, max_len, options=None, kernel=None) -> Attention:
        return cls(n_heads=n_heads, head_dim=head_dim, options=options, kernel=kernel)

    def n_features(self, head_dim: int) -> int:
        """R, for keys of size D."""
        return 2 * head_dim * self.options.nu

    def forward(self, q, k, v, *, causal=True, key_padding_mask=None):
        check_qkv(q, k, v, causal=causal, key_padding_mask=key_padding_mask)
        q, k, v, beta = self.writes(q, k, v, key_padding_mask, causal=causal)
        divisor = None
        if self._divides:
            k, beta, z = self._normalised_writes(k, beta, torch.zeros_like(k[:, :, 0]))
            divisor = self._divisor(q, z if causal else z[:, :, -1:])
        if causal:
            y = delta_rule(q, k, v, beta, kernel=self.kernel)
        else:
            y = delta_retrieve(q, k, v, beta, kernel=self._retrieval_kernel)
        return y if divisor is None else (y / divisor).to(v.dtype)

    @property
    def _divides(self) -> bool:
        return getattr(self.options, "normalised", None) is True

    def _normalised_writes(self, k: Tensor, beta: Tensor, z: Tensor) -> tuple[Tensor, ...]:
        """Keys κ = k / (z_{i-1}·k_i) and strengths β (z_{i-1}·k_i), which write
        β (v_i - W κ_i) k_iᵀ, and z_i (B, H, N, R), after a z (B, H, R)."""
        sums = z.unsqueeze(2) + k.cumsum(2)
        scale = ((sums - k) * k).sum(-1)
        scale = torch.where(scale > 0, scale, 1)
        return k / scale.unsqueeze(-1), beta * scale, sums

    @staticmethod
    def _divisor(q: Tensor, z: Tensor) -> Tensor:
        """z·q of queries (B, H, N, R) and sums of keys (B, G, N, R)."""
        return (q * repeat_heads(z, q.shape[1])).sum(-1, keepdim=True) + SUM_EPS

    def writes(
        self, q: Tensor, k: Tensor, v: Tensor, padding: Tensor | None, *, causal: bool
    ) -> tuple[Tensor, ...]:
        """Features of queries and keys, values, and β; 0 at padding (B, N)."""
        q, k, v = without_padding(q, k, v, padding, causal=causal)
        with without_autocast(q.device.type):
            beta = self._beta(k, "bhnd,hd->bhn")
            if padding is not None:
                beta = beta.masked_fill(padding[:, None], 0)
            return self._features(q), self._features(k), v, beta

    def _features(self, x: Tensor) -> Tensor:
        """φ(x), (..., D) -> (..., R), float32 or wider."""
        return _normalised(x, self.options.nu)

    @property
    def _retrieval_kernel(self) -> str | None:
        return self.kernel if self.kernel in RETRIEVAL_KERNELS else None

    def init_state(
        self, batch_size, n_heads, head_dim, value_dim=None, **options
    ) -> DeltaState | LinearState:
        sizes = batch_size, n_heads, self.n_features(head_dim), value_dim or head_dim
        state = no_sums(*sizes, **options)
        return state if self._divides else DeltaState(state.s)

    def step(self, state: DeltaState | LinearState, q, k, v):
        """One write, then one read."""
        if self._divides:
            y, state = self.prefill(state, *(x.unsqueeze(2) for x in (q, k, v)))
            return y.squeeze(2), state
        s = state.s.flatten(0, 1)
        with without_autocast(s.device.type):
            beta = self._beta(k, "bhd,hd->bh").reshape(-1, 1, 1).to(s.dtype)
            key, value = (x.flatten(0, 1).unsqueeze(1).to(s.dtype) for x in (self._features(k), v))
            s = self._write(s, key, value, beta)
            y = self._normalised_read(read(s, self._features(q), k.shape[1]))
        return y.to(v.dtype), DeltaState(s.view(state.s.shape))

    def _write(self, s: Tensor, key: Tensor, value: Tensor, beta: Tensor) -> Tensor:
        """s (B·H, R, M), key (B·H, 1, R), value (B·H, 1, M), beta (B·H, 1, 1)."""
        return plain.delta_write(s, key, value, beta)[1]

    def _normalised_read(self, y: Tensor) -> Tensor:
        return y

    def prefill(self, state: DeltaState | LinearState, q, k, v, *, key_padding_mask=None):
        """In parallel: what has been in the memory before is a part of all that is read, so that
        the writes are those of v - W_0 k to an empty one."""
        check_qkv(q, k, v, causal=True, key_padding_mask=key_padding_mask)
        s, dtype = state.s, v.dtype
        q, k, v, beta = self.writes(q, k, v, key_padding_mask, causal=True)
        with without_autocast(s.device.type):
            q, k, v, beta = (x.to(s.dtype) for x in (q, k, v, beta))
            if self._divides:
                k, beta, sums = self._normalised_writes(k, beta, state.z)
            v = v - k @ s
            y = delta_rule(q, k, v, beta, kernel=self.kernel) + q @ repeat_heads(s, q.shape[1])
            if self._divides:
                y = y / self._divisor(q, sums)
            units = torch.eye(k.shape[-1], dtype=s.dtype, device=s.device)
            written = delta_retrieve(units.expand(*k.shape[:2], -1, -1), k, v, beta)
        after = s + written
        if not self._divides:
            return y.to(dtype), DeltaState(after)
        z = sums[:, :, -1] if sums.shape[2] else state.z
        return y.to(dtype), LinearState(after, z)

    def _beta(self, k: Tensor, sizes: str) -> Tensor:
        k = _wide(k)
        share = max(1, len(self.to_beta) // k.shape[1])
        w, b = self.to_beta[::share].to(k.dtype), self.beta_bias[::share].to(k.dtype)
        b = b.unsqueeze(-1) if k.dim() == 4 else b
        return torch.sigmoid(torch.einsum(sizes, k, w) + b)

    @classmethod
    def unavailable(cls, kernel, *, device_type, dtype, head_dim, options=None):
        if kernel != "cpu":
            return None
        nu = (options or cls.Options()).nu
        # The features are float32 or wider, the values of this dtype.
        sizes = {"head_dim": 2 * head_dim * nu, "value_dim": head_dim}
        return why_not(kernel, device_type=device_type, dtype=dtype, **sizes)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _normalised(x: Tensor, nu: int) -> Tensor:
    """DPFP-ν features that sum to 1, (..., D) -> (..., R); all 0 where no feature is above 0."""
    return summing_to_1(dpfp(_wide(x), nu))
