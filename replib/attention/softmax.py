"""Softmax attention: the baseline, Vaswani et al. 2017, eq. 1.

B batch, H heads, N sequence length, D query/key size per head, M value size per head.
"""

import math
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from replib.attention.base import Attention, check_qkv, repeat_heads
from replib.attention.padding import can_be_asked, finite_so_far, nothing_seen, without_padding
from replib.packing import packed
from replib.plain import all_finite, without_autocast

# The cache starts at this many positions and doubles, so that N steps copy it O(log N) times.
FIRST_CACHE_LEN = 64

# On a CPU one query reads so many rows (B H N) of a cache of float32 faster by two matrix products
# than by torch's fused kernel, which is made for many queries: 1.05 to 1.3 times on two cores, D =
# 32. Fewer rows it reads in 0.7 to 0.8 of the time of the products.
MANY_ROWS = 2**16


def softmax_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = True,
    implementation: str = "fused",
    key_padding_mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """softmax(Q Kᵀ / sqrt(D)) V (Vaswani et al. 2017, eq. 1).

    Args:
        q, k: (B, H, N, D); v: (B, H, N, M). Not causal, q may have a length of its own. The heads
            of k and v may be a divisor of those of q.
        causal: position i attends to j <= i only.
        implementation: "fused" calls torch's scaled_dot_product_attention, as it is: its gradient
            of q in bfloat16 is off by 2 to 15 % where values have a mean of 5 to 20. "textbook"
            forms the (N, N) weights, as the 2022 replication did, of float32 or wider.
        key_padding_mask: (B, N) bool, True where a key is padding. A query that sees no key gets 0.
        cu_seqlens: (S + 1,), boundaries of S sequences one after the other in a batch of 1,
            each to be attended over alone; see `replib.packing.Packing`.

    Returns:
        (B, H, N, M).

    Raises:
        ValueError: shapes disagree, or the implementation is unknown.
    """
    if cu_seqlens is not None:
        attend = partial(softmax_attention, causal=causal, implementation=implementation)
        return packed(attend, cu_seqlens, q, k, v, causal=causal, padding_mask=key_padding_mask)
    check_qkv(q, k, v, causal=causal, key_padding_mask=key_padding_mask)
    SoftmaxAttention.check(None, implementation)
    attend = _fused if implementation == "fused" else _textbook
    q, k, v = without_padding(q, k, v, key_padding_mask, causal=causal)
    if not q.dtype == k.dtype == v.dtype:
        wide = torch.promote_types(torch.promote_types(q.dtype, k.dtype), v.dtype)
        options = {"causal": causal, "implementation": implementation}
        y = softmax_attention(
            *(x.to(wide) for x in (q, k, v)), key_padding_mask=key_padding_mask, **options
        )
        return y.to(v.dtype)
    if causal:
        return _causal(q, k, v, key_padding_mask, attend)
    if key_padding_mask is None:
        return attend(q, k, v, None)
    # Where nothing is to be seen all is, and then not taken: a softmax of nothing is NaN.
    nothing = key_padding_mask.all(1)[:, None, None, None]
    return attend(q, k, v, ~key_padding_mask[:, None, None] | nothing).masked_fill(nothing, 0)


def _causal(q: Tensor, k: Tensor, v: Tensor, padding: Tensor | None, attend) -> Tensor:
    """What the last queries (B, H, L, D) read of keys (B, G, N, D) up to their own positions."""
    first, visible, nothing = k.shape[2] - q.shape[2], None, None
    if first or padding is not None or attend is _textbook:
        key = torch.arange(k.shape[2], device=q.device)
        query = key[first:].unsqueeze(-1)
        visible = key <= query  # (L, N)
    if padding is not None:
        nothing = nothing_seen(padding)[:, :, first:]
        # A softmax of nothing is NaN: it is of itself, and then not taken.
        visible = (visible & ~padding[:, None, None]) | (nothing & (key == query))
    y = None
    if can_be_asked(q):
        y = attend(q, k, v, visible, causal=True)
    if y is None or not all_finite(y):
        k, v, spoiled = finite_so_far(k, v)
        spoiled = repeat_heads(spoiled[:, :, first:], q.shape[1])
        y = attend(q, k, v, visible, causal=True) + spoiled
    return y if nothing is None else y.masked_fill(nothing, 0)


def _fused(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None, causal=False) -> Tensor:
    grouped = q.shape[1] != k.shape[1]
    return scaled_dot_product_attention(
        q, k, v, attn_mask=visible, is_causal=causal and visible is None, enable_gqa=grouped
    )


def _textbook(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None, causal=False) -> Tensor:
    wide = torch.promote_types(q.dtype, torch.float32)
    k, v = (repeat_heads(x, q.shape[1]) for x in (k, v))
    # Scores of bfloat16 lose what values have in common from the gradients.
    with without_autocast(q.device.type):
        scores = q.to(wide) @ k.to(wide).mT / math.sqrt(q.shape[-1])  # (B, H, N, N)
        if visible is not None:
            scores = scores.masked_fill(~visible, -torch.inf)
        return (torch.softmax(scores, dim=-1) @ v.to(wide)).to(v.dtype)


def _by_products(query: Tensor, keys: Tensor) -> bool:
    """Whether one query reads faster without the fused kernel."""
    of_cpu = keys.device.type == "cpu" and keys.dtype == torch.float32
    return of_cpu and query.shape[1] == keys.shape[1] and keys.shape[:3].numel() >= MANY_ROWS


class KVCache(NamedTuple):
    """Keys (B, G, capacity, D) and values (B, G, capacity, M), the first `length` of them valid.

    A length that is a tensor () keeps all shapes fixed, as a CUDA graph needs them: a step then
    attends to the whole capacity under a mask, and the cache never grows.

    Attributes:
        padding: (B, capacity) whether a position is padding; (B, 0) where none is.
    """

    keys: Tensor
    values: Tensor
    length: int | Tensor
    padding: Tensor

    def last(self, n: int) -> "KVCache":
        """A cache of the last n positions alone, with room for no other."""
        end = int(self.length)
        places = slice(max(0, end - n), end)
        keys, values = self.keys[:, :, places], self.values[:, :, places]
        return KVCache(keys, values, keys.shape[2], self.padding[:, places])


def no_rows(
    batch_size: int,
    n_heads: int,
    head_dim: int,
    value_dim: int | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    max_len: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Room for the keys and values of the first positions of a cache."""
    shape = (batch_size, n_heads, max_len or FIRST_CACHE_LEN)
    sizes = head_dim, value_dim or head_dim
    return tuple(torch.zeros(*shape, size, dtype=dtype, device=device) for size in sizes)


class SoftmaxAttention(Attention):
    """Softmax attention; its state is the cache of all keys and values, which grows with N."""

    label = "softmax"
    kernels = ("fused", "textbook")
    recurrent = True

    def forward(self, q, k, v, *, causal=True, key_padding_mask=None):
        options = {"implementation": self._kernel, "causal": causal}
        return softmax_attention(q, k, v, **options, key_padding_mask=key_padding_mask)

    def init_state(self, batch_size, n_heads, head_dim, value_dim=None, **options) -> KVCache:
        keys, values = no_rows(batch_size, n_heads, head_dim, value_dim, **options)
        return KVCache(keys, values, 0, keys.new_zeros(batch_size, 0, dtype=torch.bool))

    def step(self, state: KVCache, q, k, v):
        """Add one key and value, attend with one query to all so far."""
        keys, values, length, padding = state
        added = [x.unsqueeze(2).to(cache.dtype) for cache, x in ((keys, k), (values, v))]
        pairs = zip((keys, values), added, strict=True)
        if isinstance(length, Tensor):
            keys, values = (cache.index_copy(2, length.view(1), x) for cache, x in pairs)
        else:
            keys, values = (torch.cat([cache[:, :, :length], x], dim=2) for cache, x in pairs)
            padding = pad(padding[:, :length], (0, 1)) if padding.shape[1] else padding
        following = KVCache(keys, values, length + 1, padding)
        return self._read(following, q, length).to(v.dtype), following

    def step_(self, state: KVCache, q, k, v):
        """`step` that writes into the cache; a full one is copied to one of twice its capacity."""
        if torch.is_grad_enabled():
            with torch.no_grad():
                return self.step_(state, q, k, v)
        keys, values, length, padding = state
        if isinstance(length, Tensor):
            for cache, x in ((keys, k), (values, v)):
                cache.index_copy_(2, length.view(1), x.unsqueeze(2).to(cache.dtype))
            y = self._read(state, q, length)
            length.add_(1)
            return y.to(v.dtype), state
        if length == keys.shape[2]:
            keys, values = (torch.cat([x, torch.zeros_like(x)], dim=2) for x in (keys, values))
            padding = pad(padding, (0, length)) if padding.shape[1] else padding
        keys[:, :, length], values[:, :, length] = k, v
        following = KVCache(keys, values, length + 1, padding)
        return self._read(following, q, length).to(v.dtype), following

    def _read(self, cache: KVCache, q: Tensor, position: int | Tensor) -> Tensor:
        """What the query (B, H, D) of a position reads of those up to it: (B, H, M)."""
        keys, values, _, padding = cache
        hidden = padding[:, None, None] if padding.shape[1] else None
        if isinstance(position, Tensor):
            later = (torch.arange(keys.shape[2], device=keys.device) > position)[None, None, None]
            hidden = later if hidden is None else hidden | later
        else:
            keys, values = (x[:, :, : position + 1] for x in (keys, values))
            hidden = None if hidden is None else hidden[..., : position + 1]
        with without_autocast(q.device.type):
            query = q.unsqueeze(2).to(keys.dtype)
            if hidden is None and _by_products(query, keys):
                return _textbook(query, keys, values, None).squeeze(2)
            visible = None if hidden is None else ~hidden
            return self._attend(query, keys, values, visible).squeeze(2)

    def prefill(self, state: KVCache, q, k, v, *, key_padding_mask=None):
        check_qkv(q, k, v, causal=True, key_padding_mask=key_padding_mask)
        keys, values, length, padding = state
        first, dtype = int(length), v.dtype
        n, capacity = first + k.shape[2], keys.shape[2]
        if n > capacity and isinstance(length, Tensor):
            raise ValueError(f"{n} positions in a cache of {capacity}: use a larger max_len")
        q, k, v = without_padding(q, k, v, key_padding_mask, causal=True)
        keys, values = (
            torch.cat([cache[:, :, :first], x.to(cache.dtype)], dim=2)
            for cache, x in ((keys, k), (values, v))
        )
        hidden = None
        if padding.shape[1] or key_padding_mask is not None:
            hidden = padding.new_zeros(len(k), n)
            hidden[:, : min(first, padding.shape[1])] = padding[:, :first]
            if key_padding_mask is not None:
                hidden[:, first:] = key_padding_mask
        with without_autocast(q.device.type):
            y = _causal(q.to(keys.dtype), keys, values, hidden, self._attend)
        room = max(capacity, n) - n
        keys, values = (pad(x, (0, 0, 0, room)) for x in (keys, values))
        padding = padding if hidden is None else pad(hidden, (0, room))
        length = torch.full_like(length, n) if isinstance(length, Tensor) else n
        return y.to(dtype), KVCache(keys, values, length, padding)

    @property
    def _attend(self):
        return _fused if self._kernel == "fused" else _textbook

    @property
    def _kernel(self) -> str:
        return self.kernel or self.kernels[0]
