"""Softmax attention: the baseline, Vaswani et al. 2017, eq. 1.

B batch, H heads, N sequence length, D query/key size per head, M value size per head.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from replib.attention.base import Attention, check_qkv

# The cache starts at this many positions and doubles, so that N steps copy it O(log N) times.
FIRST_CACHE_LEN = 64

# From timings at D = 32 and 64, N = 64 to 16384, on a 2-core AMD EPYC: the fused form's share of a
# matrix product's rate, and what storing one (N, N) score costs besides its products.
FUSED_EFFICIENCY = 0.4
OPERATIONS_PER_STORED_SCORE = 600


def softmax_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = True,
    implementation: str = "fused",
    key_padding_mask: Tensor | None = None,
) -> Tensor:
    """softmax(Q Kᵀ / sqrt(D)) V (Vaswani et al. 2017, eq. 1).

    Args:
        q, k: (B, H, N, D); v: (B, H, N, M). Not causal, q may have a length of its own.
        causal: position i attends to j <= i only.
        implementation: "fused" calls torch's scaled_dot_product_attention; "textbook" forms the
            (N, N) weights, as the 2022 replication did.
        key_padding_mask: (B, N) bool, True where a key is padding; not causal only. A query
            whose keys are all padding gets 0.

    Returns:
        (B, H, N, M).

    Raises:
        ValueError: shapes disagree, or the implementation is unknown.
    """
    check_qkv(q, k, v, causal=causal, key_padding_mask=key_padding_mask)
    implementation = SoftmaxAttention.resolve(implementation)
    visible = None if key_padding_mask is None else ~key_padding_mask[:, None, None, :]
    if implementation == "fused":
        y = scaled_dot_product_attention(q, k, v, attn_mask=visible, is_causal=causal)
    else:
        y = _textbook(q, k, v, causal, visible)
    if visible is None:
        return y
    return torch.where(visible.any(-1, keepdim=True), y, 0)


def _textbook(q: Tensor, k: Tensor, v: Tensor, causal: bool, visible: Tensor | None) -> Tensor:
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])  # (B, H, N, N)
    if causal:
        n = q.shape[2]
        future = torch.ones(n, n, dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(future, -torch.inf)
    elif visible is not None:
        scores = scores.masked_fill(~visible, -torch.inf)
    return torch.softmax(scores, dim=-1) @ v


class KVCache(NamedTuple):
    """Keys (B, H, capacity, D) and values (B, H, capacity, M), the first `length` of them valid.

    A length that is a tensor () keeps all shapes fixed, as a CUDA graph needs them: a step then
    attends to the whole capacity under a mask, and the cache never grows.
    """

    keys: Tensor
    values: Tensor
    length: int | Tensor


class SoftmaxAttention(Attention):
    """Softmax attention; its state is the cache of all keys and values, which grows with N."""

    label = "softmax"
    implementations = ("fused", "textbook")
    recurrent = True

    def forward(self, q, k, v, *, causal=True, key_padding_mask=None):
        return softmax_attention(
            q,
            k,
            v,
            causal=causal,
            implementation=self.implementation,
            key_padding_mask=key_padding_mask,
        )

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
    ) -> KVCache:
        shape = (batch_size, n_heads, max_len or FIRST_CACHE_LEN)
        keys = torch.zeros(*shape, head_dim, dtype=dtype, device=device)
        return KVCache(keys, keys.new_zeros(*shape, value_dim or head_dim), 0)

    def step(self, state: KVCache, q, k, v):
        """Add one key and value, attend with one query to all so far.

        The cache is written in place; a full one is copied to one of twice its capacity.
        """
        keys, values, length = state
        if isinstance(length, Tensor):
            for cache, x in ((keys, k), (values, v)):
                cache.index_copy_(2, length.view(1), x[:, :, None])
            seen, padding = slice(None), torch.arange(keys.shape[2], device=k.device) > length
            padding, following = padding.expand(len(k), -1), length.add_(1)
        else:
            if length == keys.shape[2]:
                keys, values = (torch.cat([x, torch.zeros_like(x)], dim=2) for x in (keys, values))
            keys[:, :, length], values[:, :, length] = k, v
            seen, padding, following = slice(length + 1), None, length + 1
        y = softmax_attention(
            q[:, :, None],
            keys[:, :, seen],
            values[:, :, seen],
            causal=False,
            implementation=self.implementation,
            key_padding_mask=padding,
        )
        return y[:, :, 0], KVCache(keys, values, following)

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
        rows = batch_size * n_heads * seq_len * itemsize
        if cls.resolve(implementation) == "fused":
            return rows * head_dim * (5 if backward else 1)
        return rows * seq_len * (4 if backward else 3) + rows * head_dim

    @classmethod
    def operations(cls, *, seq_len, head_dim, causal, implementation=None):
        if cls.resolve(implementation) == "textbook":  # a causal mask saves it nothing
            return seq_len**2 * (4.0 * head_dim + OPERATIONS_PER_STORED_SCORE)
        return seq_len**2 * 4.0 * head_dim * (0.5 if causal else 1.0) / FUSED_EFFICIENCY
