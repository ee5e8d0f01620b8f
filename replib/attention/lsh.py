"""LSH attention of *Reformer* (Kitaev, Kaiser & Levskaya 2020): softmax attention of each position
to those whose shared query/key falls into the same bucket.

B batch, H heads, N sequence length, D query/key size per head, M value size per head, C chunk,
G chunks, S = G·C places in them, T rounds of hashing.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from replib.attention.base import Attention, check_qkv, repeat_heads
from replib.attention.padding import can_be_asked, without_padding
from replib.attention.softmax import no_rows, softmax_attention
from replib.checks import check_numbers
from replib.plain import all_finite, without_autocast

# 64 buckets and chunks of 32 are what Katharopoulos et al. 2020 (section 4) compare with. A shorter
# sequence has no more buckets than chunks.
MAX_BUCKETS, CHUNK_LEN = 64, 32
OWN_POSITION = -1e5  # the score of a position with itself: chosen only where there is no other
SEED = 0
MAX_ROUNDS = 64  # more is taken for a slip


class HashedCache(NamedTuple):
    """What has been seen, its first `length` positions valid (of a capacity P).

    Attributes:
        keys: unit vectors (B, H, P, D), of the heads of queries; values: (B, G, P, M).
        bucket, rank: (B, H, P, T) of each round: the bucket of a position, and how many positions
            of this bucket were before it. Padding has a bucket of its own, beyond the last.
        length: a number, or a tensor () that keeps all shapes fixed, as in `softmax.KVCache`.
    """

    keys: Tensor
    values: Tensor
    bucket: Tensor
    rank: Tensor
    length: int | Tensor


class Places(NamedTuple):
    """Where the positions of a round stand in the chunks.

    Attributes:
        place: (B, H, N) the place of each position, of S.
        position: (B, H, S) the position at each place; N where it is empty.
        first: (B, H, G) whether a chunk has none before it to attend to.
    """

    place: Tensor
    position: Tensor
    first: Tensor


class LSHAttention(Attention):
    """Reformer attention, ours or that of fast-transformers ("original").

    Causal, queries and keys are shared: position i is compared by q_i, and with the unit vector
    of q_j; k is not looked at (Reformer, section 2). In each round positions are hashed by
    argmax [x R, -x R] with a random R, and each attends to those before it in its own chunk of its
    bucket and in the chunk before. Rounds are weighted by their normalisers.

    Deviation: a chunk begins anew at each bucket, and a short sequence has few buckets, one a chunk
    (`for_model`). In the original, what Katharopoulos et al. 2020 compare with, there are 64 at any
    length, and chunks are cut from one sorted sequence, so that a position attends across buckets,
    and to itself, and which earlier positions it sees depends on the hashes of *later* ones: what
    stands at a position changes with what follows, and there is no recurrent form. Its rounds are
    averaged. With the option `original` it does all that.
    Deviation: a pair that meets in several rounds counts in each; the paper's eq. 4 counts it once.
    Deviation: not causal (an encoder, or attention to one), every query is compared with the unit
    vectors of all keys, without hashing: queries and keys come from different sequences there, and
    the contract does not tell. That costs what softmax attention does.
    Deviation: there is no dropout of weights; the original has 0.1.

    Resampling: R is drawn once, when it is built, from a generator of the seed `SEED`, and kept in
    a buffer; the original draws anew at each step.
    """

    @dataclass(frozen=True, kw_only=True)
    class Options(Attention.Options):
        """T rounds of hashing, and whether buckets and chunks are the original's."""

        rounds: int = 1
        original: bool = False

        def __post_init__(self):
            check_numbers(self, rounds=MAX_ROUNDS)

        @property
        def label(self) -> str:
            rounds = f"{self.rounds} round{'s' * (self.rounds > 1)}"
            return f"original {rounds}" if self.original else rounds

    label = "LSH"
    offered = (  # the rounds of Katharopoulos et al. 2020, fig. 1
        Options(rounds=1),
        Options(rounds=4),
        Options(rounds=8),
        Options(rounds=1, original=True),
        Options(rounds=4, original=True),
        Options(rounds=8, original=True),
    )
    recurrent = True

    def __init__(
        self,
        *,
        head_dim: int,
        options=None,
        kernel=None,
        chunk_len: int = CHUNK_LEN,
        n_buckets: int = MAX_BUCKETS,
    ):
        """
        Args:
            n_buckets: even, or 1, which makes it softmax attention of the last one to two chunks.

        Raises:
            ValueError: a size is out of range.
        """
        super().__init__(options=options, kernel=kernel)
        if chunk_len < 1:
            raise ValueError(f"chunk_len {chunk_len}: use at least 1")
        if n_buckets != 1 and (n_buckets % 2 or not 2 <= n_buckets <= MAX_BUCKETS):
            raise ValueError(f"n_buckets {n_buckets}: use 1, or an even number to {MAX_BUCKETS}")
        self.chunk_len, self.n_buckets = chunk_len, n_buckets
        rotations = torch.empty(self.options.rounds, head_dim, MAX_BUCKETS // 2)
        self.register_buffer("rotations", rotations)
        self.reset_buffers()

    def reset_buffers(self) -> None:
        """Draw the random R of each round."""
        if not self.rotations.is_meta:
            generator = torch.Generator().manual_seed(SEED)
            self.rotations.copy_(torch.randn(self.rotations.shape, generator=generator))

    @classmethod
    def for_model(cls, *, n_heads, head_dim, max_len, options=None, kernel=None) -> Attention:
        n_chunks = max_len // CHUNK_LEN
        n_buckets = 1 if n_chunks < 2 else min(MAX_BUCKETS, n_chunks // 2 * 2)
        if options is not None and options.original:
            n_buckets = MAX_BUCKETS
        return cls(head_dim=head_dim, options=options, kernel=kernel, n_buckets=n_buckets)

    def get_extra_state(self) -> int:
        return self.n_buckets

    def set_extra_state(self, n_buckets: int) -> None:
        self.n_buckets = n_buckets  # weights move to a model for another length with it

    def forward(self, q, k, v, *, causal=True, key_padding_mask=None):
        check_qkv(q, k, v, causal=causal, key_padding_mask=key_padding_mask)
        if not causal:
            q, k, v = without_padding(q, k, v, key_padding_mask, causal=False)
            unit = normalize(k, dim=-1)
            return softmax_attention(q, unit, v, causal=False, key_padding_mask=key_padding_mask)
        with without_autocast(q.device.type):
            wide = torch.promote_types(q.dtype, torch.float32)
            q, wide_v, bucket = self._hashed(q.to(wide), v.to(wide), key_padding_mask)
            unit, padded = normalize(q, dim=-1), key_padding_mask is not None
            return self._attend(q, unit, wide_v, bucket, padded).to(v.dtype)

    def _hashed(
        self, q: Tensor, v: Tensor, padding: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """q and v, 0 at padding (B, N), and the bucket of each position and round (B, H, N, T)."""
        if padding is not None:
            q, v = (x.masked_fill(padding[:, None, :, None], 0) for x in (q, v))
        with torch.no_grad():
            rounds = [buckets(q, r, self.n_buckets) for r in self.rotations.to(q.dtype)]
            bucket = torch.stack(rounds, dim=-1)
            if padding is not None:
                bucket = bucket.masked_fill(padding[:, None, :, None], self.n_buckets)
        return q, v, bucket

    def _attend(self, q: Tensor, unit: Tensor, v: Tensor, bucket: Tensor, padded: bool) -> Tensor:
        """Causal: q and unit vectors (B, H, N, D), v (B, G, N, M), and the bucket of each round
        (B, H, N, T), beyond the last at padding -> (B, H, N, M)."""
        v = repeat_heads(v, q.shape[1])
        if 0 in v.shape:
            return (q @ unit.mT) @ v
        with torch.no_grad():
            placed = [self._places(x, padded) for x in bucket.unbind(-1)]
        y = None
        if can_be_asked(v):
            y = self._average([self._round(q, unit, v, x) for x in placed])
        if y is None or not all_finite(y):  # 0·NaN is NaN
            bad = ~v.isfinite()
            finite = v.masked_fill(bad, 0)
            y = self._average([self._round(q, unit, finite, x) for x in placed])
            with torch.no_grad():
                bad = torch.stack([self._seen(bad.to(v.dtype), x) for x in placed]).sum(0) > 0
            y = y.masked_fill(bad, torch.nan)
        if not padded:
            return y
        return y.masked_fill((bucket[..., :1] == self.n_buckets), 0)

    def _average(self, rounds: list[tuple[Tensor, Tensor]]) -> Tensor:
        y, log_sum = (torch.stack(x) for x in zip(*rounds, strict=True))  # (T, B, H, N, M or 1)
        return y.mean(0) if self.options.original else (y * log_sum.softmax(0)).sum(0)

    def _places(self, bucket: Tensor, padded: bool) -> Places:
        if self.options.original:
            placed = sorted_places(bucket, self.chunk_len)
        else:
            placed = places(bucket, self.n_buckets + padded, self.chunk_len)
        if not padded:
            return placed
        # Padding leaves its places empty.
        last = bucket.shape[-1]
        at = torch.cat([bucket, bucket.new_zeros(*bucket.shape[:-1], 1)], dim=-1)
        hidden = at.gather(-1, placed.position) == self.n_buckets
        return placed._replace(position=placed.position.masked_fill(hidden, last))

    def _chunks(self, x: Tensor, placed: Places) -> Tensor:
        """(B, H, N, D) -> (B, H, G, C, D), 0 at empty places."""
        x = torch.cat([x, x.new_zeros(*x.shape[:2], 1, x.shape[-1])], dim=2)
        return _rows(x, placed.position).unflatten(2, (-1, self.chunk_len))

    def _positions(self, placed: Places, n: int) -> tuple[Tensor, Tensor]:
        """Those of the queries (B, H, G, C, 1) and of the keys (B, H, G, 1, 2C) of each chunk."""
        here = placed.position.unflatten(2, (-1, self.chunk_len))  # (B, H, G, C)
        before = torch.where(placed.first.unsqueeze(-1), n, _previous(here))
        return here.unsqueeze(-1), torch.cat([before, here], dim=-1).unsqueeze(-2)

    def _seen(self, x: Tensor, placed: Places) -> Tensor:
        """The sum of x (B, H, N, M) over what each position sees in a round."""
        here, there = self._positions(placed, x.shape[2])
        x = self._chunks(x, placed)
        total = (there <= here).to(x.dtype) @ torch.cat([_previous(x), x], dim=3)
        return _rows(total.flatten(2, 3), placed.place)

    def _round(self, q: Tensor, unit: Tensor, v: Tensor, placed: Places) -> tuple[Tensor, Tensor]:
        """The outputs of a round (B, H, N, M), and the logarithms of their normalisers."""
        queries, keys, values = (self._chunks(x, placed) for x in (q, unit, v))
        here, there = self._positions(placed, q.shape[2])
        keys, values = (torch.cat([_previous(x), x], dim=3) for x in (keys, values))
        scores = queries @ keys.mT / math.sqrt(q.shape[-1])  # (B, H, G, C, 2C)
        scores = scores.masked_fill(there > here, -torch.inf)  # later, or empty
        if not self.options.original:
            scores = scores.masked_fill(there == here, OWN_POSITION)
        log_sum = scores.logsumexp(-1, keepdim=True)
        y = (scores - log_sum).exp() @ values
        return tuple(_rows(x.flatten(2, 3), placed.place) for x in (y, log_sum))

    def init_state(self, batch_size, n_heads, head_dim, value_dim=None, **options) -> HashedCache:
        """
        Raises:
            ValueError: it is the original's, which has no recurrent form.
        """
        if self.options.original:
            raise ValueError(
                f"LSH attention of {self.options.label} has no recurrent form, as an output "
                "depends on later positions: use original=False"
            )
        options["dtype"] = torch.promote_types(options.get("dtype", torch.float32), torch.float32)
        keys, values = no_rows(batch_size, n_heads, head_dim, value_dim, **options)
        bucket = keys.new_zeros(*keys.shape[:3], len(self.rotations), dtype=torch.int64)
        return HashedCache(keys, values, bucket, torch.zeros_like(bucket), 0)

    def step(self, state: HashedCache, q, k, v):
        """Add one position and attend with it."""
        y, caches, at = self._step(state, q, v, Tensor.index_copy)
        return y, HashedCache(*caches, at + 1)

    def step_(self, state: HashedCache, q, k, v):
        """`step` that writes into the cache; a full one is copied to one of twice its capacity."""
        if torch.is_grad_enabled():
            with torch.no_grad():
                return self.step_(state, q, k, v)
        y, caches, at = self._step(state, q, v, Tensor.index_copy_)
        following = at.add_(1) if isinstance(at, Tensor) else at + 1
        return y, HashedCache(*caches, following)

    def _step(self, state: HashedCache, q: Tensor, v: Tensor, write):
        """What a position reads, the caches with it, and their length before."""
        *caches, length = _for_heads(state, q.shape[1])
        if not isinstance(length, Tensor) and length == caches[0].shape[2]:
            caches = [torch.cat([x, torch.zeros_like(x)], dim=2) for x in caches]
        with without_autocast(q.device.type):
            keys, values, bucket, rank = caches
            at = torch.as_tensor(length, device=q.device).view(1)
            # (B, H, 1, D), (B, G, 1, M), (B, H, 1, T)
            query, value, own = self._hashed(
                q.unsqueeze(2).to(keys.dtype), v.unsqueeze(2).to(values.dtype), None
            )
            position = torch.arange(keys.shape[2], device=q.device).view(-1, 1)  # (P, 1)
            own_rank = ((bucket == own) & (position < at)).sum(2, keepdim=True)
            added = (normalize(query, dim=-1), value, own, own_rank)
            keys, values, bucket, rank = caches = [
                write(cache, 2, at, x) for cache, x in zip(caches, added, strict=True)
            ]
            chunks_before = own_rank // self.chunk_len - rank // self.chunk_len
            seen = (bucket == own) & (chunks_before <= 1) & (position <= at)  # (B, H, P, T)
            scores = (keys @ query.mT / math.sqrt(q.shape[-1])).squeeze(-1)  # (B, H, P)
            scores = scores.masked_fill((position == at).squeeze(-1), OWN_POSITION).unsqueeze(-1)
            scores = scores.masked_fill(~seen, -torch.inf)
            log_sum = scores.logsumexp(2, keepdim=True)
            weights = ((scores - log_sum).exp() * log_sum.softmax(-1)).sum(-1)
            by_group = weights.unflatten(1, (values.shape[1], -1))  # (B, G, H/G, P)
            y = (by_group @ values).flatten(1, 2)
            if can_be_asked(y) and not all_finite(y):  # 0·NaN is NaN
                bad = ~values.isfinite()
                y = (by_group @ values.masked_fill(bad, 0)).flatten(1, 2)
                seen = seen.any(-1).unflatten(1, by_group.shape[1:3]).to(y.dtype)
                y = y.masked_fill((seen @ bad.to(y.dtype)).flatten(1, 2) > 0, torch.nan)
        return y.to(v.dtype), caches, length

    def prefill(self, state: HashedCache, q, k, v, *, key_padding_mask=None):
        check_qkv(q, k, v, causal=True, key_padding_mask=key_padding_mask)
        *caches, length = _for_heads(state, q.shape[1])
        first, capacity = int(length), caches[0].shape[2]
        n = first + q.shape[2]
        if n > capacity and isinstance(length, Tensor):
            raise ValueError(f"{n} positions in a cache of {capacity}: use a larger max_len")
        with without_autocast(q.device.type):
            dtype = caches[0].dtype
            query, value, bucket = self._hashed(q.to(dtype), v.to(dtype), key_padding_mask)
            keys, values, buckets = (
                torch.cat([cache[:, :, :first], x], dim=2)
                for cache, x in zip(
                    caches[:3], (normalize(query, dim=-1), value, bucket), strict=True
                )
            )
            # Those before are attended to, and need no queries of their own.
            queries = torch.cat([caches[0][:, :, :first], query], dim=2)
            padded = first > 0 or key_padding_mask is not None
            y = self._attend(queries, keys, values, buckets, padded)[:, :, first:]
        rounds = ((x, counted(x, self.n_buckets + 1)) for x in buckets.unbind(-1))
        rank = torch.stack([ranks(*x) for x in rounds], dim=-1)
        room = (0, 0, 0, max(capacity, n) - n)
        caches = [pad(x, room) for x in (keys, values, buckets, rank)]
        length = torch.full_like(length, n) if isinstance(length, Tensor) else n
        return y.to(v.dtype), HashedCache(*caches, length)


def buckets(x: Tensor, rotation: Tensor, n_buckets: int) -> Tensor:
    """argmax [x R, -x R] (Reformer, section 2): (B, H, N, D), R (D, many) -> (B, H, N)."""
    rotated = x @ rotation[:, : n_buckets // 2]
    if n_buckets == 1:
        return x.new_zeros(x.shape[:-1], dtype=torch.int64)
    return torch.cat([rotated, -rotated], dim=-1).argmax(-1)


def counted(bucket: Tensor, n_buckets: int) -> Tensor:
    """How many positions (B, H, N) each bucket holds: (B, H, n_buckets)."""
    counts = bucket.new_zeros(*bucket.shape[:-1], n_buckets)
    return counts.scatter_add_(-1, bucket, torch.ones_like(bucket))


def ranks(bucket: Tensor, counts: Tensor) -> Tensor:
    """How many positions of the same bucket are before each: (B, H, N)."""
    order = bucket.argsort(dim=-1, stable=True)
    first_rank = (counts.cumsum(-1) - counts).gather(-1, bucket.gather(-1, order))
    rank = torch.arange(bucket.shape[-1], device=bucket.device) - first_rank
    return torch.empty_like(bucket).scatter_(-1, order, rank)


def sorted_places(bucket: Tensor, chunk_len: int) -> Places:
    """Put positions, sorted by bucket, into chunks whatever bucket they are of: (B, H, N)."""
    n = bucket.shape[-1]
    order = bucket.argsort(dim=-1, stable=True)
    at = torch.arange(n, device=bucket.device).expand_as(order)
    place = torch.empty_like(order).scatter_(-1, order, at)
    position = pad(order, (0, -n % chunk_len), value=n)
    first = torch.arange(position.shape[-1] // chunk_len, device=bucket.device) == 0
    return Places(place, position, first.expand(*bucket.shape[:-1], -1))


def places(bucket: Tensor, n_buckets: int, chunk_len: int) -> Places:
    """Put positions into chunks, a bucket after the other and each in order: (B, H, N)."""
    n, counts = bucket.shape[-1], counted(bucket, n_buckets)
    n_chunks = -(-counts // chunk_len)
    first_chunk = n_chunks.cumsum(-1) - n_chunks
    place = first_chunk.gather(-1, bucket) * chunk_len + ranks(bucket, counts)
    most_chunks = n // chunk_len + n_buckets  # a bucket leaves one chunk in part empty at most
    position = bucket.new_full((*bucket.shape[:-1], most_chunks * chunk_len), n)
    position.scatter_(-1, place, torch.arange(n, device=bucket.device).expand_as(place))
    first = bucket.new_zeros((*bucket.shape[:-1], most_chunks + 1), dtype=torch.bool)
    first.scatter_(-1, first_chunk, True)
    return Places(place, position, first[..., :-1])


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """Rows of x (B, H, N, D) by index (B, H, S) -> (B, H, S, D)."""
    return x.gather(2, index.unsqueeze(-1).expand(-1, -1, -1, x.shape[-1]))


def _previous(x: Tensor) -> Tensor:
    """The chunk before each, (B, H, G, ...); the first has the last, which its mask hides."""
    return x.roll(1, dims=2)


def _for_heads(state: HashedCache, n_heads: int) -> HashedCache:
    """The state for n heads of queries, of which it has fewer until the first position."""
    keys, bucket, rank = (repeat_heads(x, n_heads) for x in (state.keys, state.bucket, state.rank))
    return state._replace(keys=keys, bucket=bucket, rank=rank)
