"""Linear attention of *Transformers are RNNs* (Katharopoulos et al. 2020).

B batch, H heads, N sequence length, D query/key size per head, M value size per head,
R feature size: φ maps D to R. The paper's s_i is `LinearState.s`, its z_i `LinearState.z`.
"""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from replib.attention.base import Attention, check_qkv, repeat_heads
from replib.attention.feature_maps import feature_map_named
from replib.attention.kernels import KERNELS, fastest_kernel, refusal, why_not
from replib.attention.padding import without_padding
from replib.packing import packed
from replib.plain import without_autocast, without_what_is_not_finite

EPS = 1e-6  # of the original code; biases denominators that are as small (φ(q)·φ(k) near 1e-6)


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = True,
    feature_map: str = "elu1",
    eps: float = EPS,
    kernel: str | None = None,
    key_padding_mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """φ(q_i)ᵀ Σ_j φ(k_j) v_jᵀ / (φ(q_i)ᵀ Σ_j φ(k_j) + eps), over j <= i when causal.

    Katharopoulos et al. 2020, eq. 9 (causal) and eq. 6 (not causal). Sums are taken in float32
    or wider; the result has the dtype of v. Memory grows as N·D.

    Args:
        q, k: (B, H, N, D); v: (B, H, N, M). Not causal, q may have a length of its own. k and v may
            have fewer heads, which queries then share in groups.
        feature_map: φ, a name of `replib.attention.feature_maps.FEATURE_MAPS`.
        eps: 0 or more, added to the denominator, which is therefore never below it.
        kernel: "plain" forms the (N, N) weights; a name of `replib.kernels.KERNELS` forces that
            kernel; None takes the fastest for the device, dtypes and sizes.
        key_padding_mask: (B, N) bool, True where a key is padding and takes no part, whatever it
            and its value hold.
        cu_seqlens: (S + 1,), boundaries of S sequences one after the other in a batch of 1,
            each to be attended over alone; see `replib.packing.Packing`.

    Returns:
        (B, H, N, M). A query that sees no key gets 0.

    Raises:
        ValueError: shapes disagree, tensors are not of floating point numbers, `eps` is below 0,
            the feature map or kernel is unknown, or the kernel cannot take these tensors.
    """
    if cu_seqlens is not None:
        options = {"causal": causal, "feature_map": feature_map, "eps": eps, "kernel": kernel}
        attend = partial(linear_attention, **options)
        return packed(attend, cu_seqlens, q, k, v, causal=causal, padding_mask=key_padding_mask)
    check_qkv(q, k, v, causal=causal, key_padding_mask=key_padding_mask)
    if not eps >= 0:
        raise ValueError(f"eps {eps}: use 0 or more")
    phi = feature_map_named(feature_map)
    elu1 = feature_map == "elu1" and kernel != "plain"  # is left to the kernel
    nothing = -torch.inf if elu1 else 0  # -∞ is a key whose feature is 0
    q, k, v = without_padding(q, k, v, key_padding_mask, causal=causal, key=nothing)
    if not elu1:
        wide = torch.promote_types(q.dtype, torch.float32)
        with without_autocast(q.device.type):
            q, k = phi(q.to(wide)), phi(k.to(wide))
        if key_padding_mask is not None:
            k = k.masked_fill(key_padding_mask[:, None, :, None], 0)
    k, v = repeat_heads(k, q.shape[1]), repeat_heads(v, q.shape[1])
    if kernel == "plain":
        return _plain(q, k, v, causal, eps)
    if kernel is None:
        kernel = fastest_kernel(q, k, v)
    else:
        LinearAttention.check(None, kernel)
        if refused := refusal(kernel, q, k, v):
            raise ValueError(refused)
    return KERNELS[kernel](q, k, v, eps, elu1, causal)


def _plain(q: Tensor, k: Tensor, v: Tensor, causal: bool, eps: float) -> Tensor:
    dtype, seen = v.dtype, 0
    with without_autocast(q.device.type):
        v = v.to(q.dtype)
        if causal:
            q, k, v, seen = without_what_is_not_finite(q, k, v, elu1=False)
        weights = q @ k.transpose(-1, -2)  # (B, H, N, N)
        if causal:
            weights = weights.tril()
        y = weights @ v / (weights.sum(-1, keepdim=True) + eps) + seen
    return y.to(dtype)


class LinearState(NamedTuple):
    """s = Σ φ(k_j) v_jᵀ (B, G, R, M) and z = Σ φ(k_j) (B, G, R), of G heads of keys."""

    s: Tensor
    z: Tensor


def no_sums(
    batch_size: int,
    n_heads: int,
    n_features: int,
    value_dim: int,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    max_len: int | None = None,
) -> LinearState:
    """The state before the first token, float32 or wider, whatever the longest sequence is."""
    wide = torch.promote_types(dtype, torch.float32)
    s = torch.zeros(batch_size, n_heads, n_features, value_dim, dtype=wide, device=device)
    return LinearState(s, s.new_zeros(s.shape[:3]))


class LinearAttention(Attention):
    """Linear attention with φ = elu + 1; its state has one size whatever N is."""

    label = "linear"
    kernels = ("torch", "cpu", "cuda", "plain")
    recurrent = True
    feature_map = "elu1"
    eps = EPS

    def forward(self, q, k, v, *, causal=True, key_padding_mask=None):
        options = {"feature_map": self.feature_map, "kernel": self.kernel, "causal": causal}
        return linear_attention(q, k, v, **options, key_padding_mask=key_padding_mask)

    def init_state(self, batch_size, n_heads, head_dim, value_dim=None, **options) -> LinearState:
        sizes = batch_size, n_heads, self.n_features(head_dim), value_dim or head_dim
        return no_sums(*sizes, **options)

    def n_features(self, head_dim: int) -> int:
        """R, for keys of size D."""
        return head_dim

    def features(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """φ of queries and of keys (..., D) -> (..., R); they are float32 or wider."""
        phi = feature_map_named(self.feature_map)
        return phi(q), phi(k)

    def step(self, state: LinearState, q, k, v):
        """Katharopoulos et al. 2020, eq. 18-20: add one key and value, read with one query."""
        (s, z), dtype = state, v.dtype
        with without_autocast(q.device.type):
            q, k, v = (x.to(s.dtype) for x in (q, k, v))
            q, k = self.features(q, k)  # (B, H, R), (B, G, R)
            state = LinearState(torch.addcmul(s, k.unsqueeze(-1), v.unsqueeze(-2)), z + k)
            return self._read(state, q).to(dtype), state

    def step_(self, state: LinearState, q, k, v):
        if torch.is_grad_enabled():
            with torch.no_grad():  # which takes as long as two operations
                return self.step_(state, q, k, v)
        (s, z), dtype = state, v.dtype
        with without_autocast(q.device.type):
            if not q.dtype == k.dtype == dtype == s.dtype:
                q, k, v = (x.to(s.dtype) for x in (q, k, v))
            q, k = self.features(q, k)
            s.addcmul_(k.unsqueeze(-1), v.unsqueeze(-2))
            z.add_(k)
            return self._read(state, q).to(dtype), state

    def _read(self, state: LinearState, q: Tensor) -> Tensor:
        """Features of queries (B, H, R), in groups that share a state -> (B, H, M)."""
        s, z = state[:2]
        if q.shape[1] != z.shape[1]:
            q = q.unflatten(1, (z.shape[1], q.shape[1] // z.shape[1]))  # (B, G, H / G, R)
            denominator = (q * z.unsqueeze(2)).sum(-1, keepdim=True) + self.eps
            return (q @ s / denominator).flatten(1, 2)
        # A sum as small as that of one sample needs one thread; the product would wait for all.
        alone = len(q) == 1
        numerator = (q.unsqueeze(-1) * s).sum(-2) if alone else (q.unsqueeze(-2) @ s).squeeze(-2)
        return numerator / ((q * z).sum(-1, keepdim=True) + self.eps)

    def prefill(self, state: LinearState, q, k, v, *, key_padding_mask=None):
        """A kernel's y times its denominator is its numerator, to which the state's is added."""
        check_qkv(q, k, v, causal=True, key_padding_mask=key_padding_mask)
        (s, z), dtype = state, v.dtype
        with without_autocast(q.device.type):
            q, k, v = (x.to(s.dtype) for x in (q, k, v))
            q, k, v = without_padding(q, k, v, key_padding_mask, causal=True)
            q, k = self.features(q, k)
            if key_padding_mask is not None:
                k = k.masked_fill(key_padding_mask[:, None, :, None], 0)
            y = self._read_all(LinearState(s, z), q, k, v)
            return y.to(dtype), LinearState(s + k.mT @ v, z + k.sum(2))

    def _read_all(self, state: LinearState, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Causal, after a state: features (B, H, N, R) and (B, G, N, R), values (B, G, N, M)."""
        k, v = repeat_heads(k, q.shape[1]), repeat_heads(v, q.shape[1])
        options = {"feature_map": "identity", "eps": self.eps, "kernel": self.kernel}
        denominator = (q * k.cumsum(2)).sum(-1, keepdim=True) + self.eps
        numerator = linear_attention(q, k, v, **options) * denominator
        s, z = (repeat_heads(x, q.shape[1]) for x in state)
        return (numerator + q @ s) / (denominator + (q * z.unsqueeze(2)).sum(-1, keepdim=True))

    @classmethod
    def unavailable(cls, kernel, *, device_type, dtype, head_dim, options=None):
        if kernel == "plain" or kernel not in cls.kernels:
            return None
        sizes = {"head_dim": head_dim, "value_dim": head_dim}
        return why_not(kernel, device_type=device_type, dtype=dtype, **sizes)


class FeatureAttention(LinearAttention):
    """Linear attention with features of another size; the kernel is the fastest for it. A subclass
    defines `features` and `n_features`."""

    kernels = ()
    feature_map = "identity"

    def forward(self, q, k, v, *, causal=True, key_padding_mask=None):
        check_qkv(q, k, v, causal=causal, key_padding_mask=key_padding_mask)
        q, k, v = without_padding(q, k, v, key_padding_mask, causal=causal)
        wide = torch.promote_types(q.dtype, torch.float32)
        with without_autocast(q.device.type):
            q, k = self.features(q.to(wide), k.to(wide))
        options = {"feature_map": self.feature_map, "eps": self.eps, "causal": causal}
        return linear_attention(q, k, v, **options, key_padding_mask=key_padding_mask)
