"""LSH attention of *Reformer* (Kitaev, Kaiser & Levskaya 2020): softmax attention of each position
to those whose shared query/key falls into the same bucket.

B batch, H heads, N sequence length, D query/key size per head, M value size per head, C chunk,
G chunks, S = G·C places in them, T rounds of hashing.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from replib.attention.base import Attention, check_qkv
from replib.attention.softmax import softmax_attention

# 64 buckets and chunks of 32 are what Katharopoulos et al. 2020 (section 4) compare with. A shorter
# sequence has no more buckets than chunks.
MAX_BUCKETS, CHUNK_LEN = 64, 32
OWN_POSITION = -1e5  # the score of a position with itself: chosen only where there is no other
SEED = 0

# A guess: the share of a matrix product's rate, and what a score costs besides its products.
EFFICIENCY, OPERATIONS_PER_SCORE = 0.2, 100


# The cache starts at this many positions and doubles, as that of softmax attention does.
FIRST_CACHE_LEN = 64


class HashedCache(NamedTuple):
    """What has been seen, its first `length` positions valid (of a capacity P).

    Attributes:
        keys: unit vectors (B, H, P, D); values: (B, H, P, M).
        bucket, rank: (B, H, P, T) of each round: the bucket of a position, and how many positions
            of this bucket were before it.
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
        first: (B, H, G) whether a chunk is the first of its bucket.
    """

    place: Tensor
    position: Tensor
    first: Tensor


class LSHAttention(Attention):
    """Reformer attention; the implementation is the number of rounds, "1 round" to "8 rounds".

    Causal, queries and keys are shared: position i is compared by q_i, and with the unit vector
    of q_j; k is not looked at (Reformer, section 2). In each round positions are hashed by
    argmax [x R, -x R] with a random R, and each attends to those before it in its own chunk of its
    bucket and in the chunk before. Rounds are weighted by their normalisers.

    Deviation: a chunk begins anew at each bucket. In the original, chunks are cut from one sorted
    sequence, so that which earlier positions one sees depends on the hashes of later ones.
    Deviation: a pair that meets in several rounds counts in each; the paper's eq. 4 counts it once.
    Deviation: not causal (an encoder, or attention to one), every query is compared with the unit
    vectors of all keys, without hashing: queries and keys come from different sequences there, and
    the contract does not tell. That costs what softmax attention does.

    Resampling: R is drawn once, when it is built, from a generator of the seed `SEED`, and kept in
    a buffer; the original draws anew at each step.
    """

    label = "LSH"
    implementations = ("1 round", "4 rounds", "8 rounds")
    recurrent = True
    sources = ("replib.attention.softmax",)

    def __init__(
        self,
        *,
        head_dim: int,
        implementation: str | None = None,
        chunk_len: int = CHUNK_LEN,
        n_buckets: int = MAX_BUCKETS,
    ):
        """
        Args:
            n_buckets: even, or 1, which makes it softmax attention of the last one to two chunks.

        Raises:
            ValueError: a size is out of range.
        """
        super().__init__(implementation=implementation)
        if chunk_len < 1:
            raise ValueError(f"chunk_len {chunk_len}: use at least 1")
        if n_buckets != 1 and (n_buckets % 2 or not 2 <= n_buckets <= MAX_BUCKETS):
            raise ValueError(f"n_buckets {n_buckets}: use 1, or an even number to {MAX_BUCKETS}")
        self.chunk_len, self.n_buckets = chunk_len, n_buckets
        n_rounds = int(self.resolve(implementation).split()[0])
        generator = torch.Generator().manual_seed(SEED)
        rotations = torch.randn(n_rounds, head_dim, MAX_BUCKETS // 2, generator=generator)
        self.register_buffer("rotations", rotations)

    @classmethod
    def for_model(cls, *, n_heads, head_dim, max_len, implementation=None) -> Attention:
        n_chunks = max_len // CHUNK_LEN
        n_buckets = 1 if n_chunks < 2 else min(MAX_BUCKETS, n_chunks // 2 * 2)
        return cls(head_dim=head_dim, implementation=implementation, n_buckets=n_buckets)

    def get_extra_state(self) -> int:
        return self.n_buckets

    def set_extra_state(self, n_buckets: int) -> None:
        self.n_buckets = n_buckets  # weights move to a model for another length with it

    def forward(self, q, k, v, *, causal=True, key_padding_mask=None):
        check_qkv(q, k, v, causal=causal, key_padding_mask=key_padding_mask)
        if not causal:
            unit = normalize(k, dim=-1)
            return softmax_attention(q, unit, v, causal=False, key_padding_mask=key_padding_mask)
        with torch.autocast(q.device.type, enabled=False):
            wide = torch.promote_types(q.dtype, torch.float32)
            return self._hashed(q.to(wide), v.to(wide)).to(v.dtype)

    def _hashed(self, q: Tensor, v: Tensor) -> Tensor:
        rounds = [self._round(q, v, rotation) for rotation in self.rotations.to(q.dtype)]
        y, log_sum = (torch.stack(x) for x in zip(*rounds, strict=True))  # (T, B, H, N, M or 1)
        return (y * log_sum.softmax(0)).sum(0)

    def _round(self, q: Tensor, v: Tensor, rotation: Tensor) -> tuple[Tensor, Tensor]:
        """The outputs of a round (B, H, N, M), and the logarithms of their normalisers."""
        c, n = self.chunk_len, q.shape[2]
        with torch.no_grad():
            placed = places(buckets(q, rotation, self.n_buckets), self.n_buckets, c)

        def chunks(x: Tensor) -> Tensor:
            """(B, H, N, D) -> (B, H, G, C, D), 0 at empty places."""
            x = torch.cat([x, x.new_zeros(*x.shape[:2], 1, x.shape[-1])], dim=2)
            return _rows(x, placed.position).unflatten(2, (-1, c))

        queries, keys, values = chunks(q), chunks(normalize(q, dim=-1)), chunks(v)
        here = placed.position.unflatten(2, (-1, c))  # (B, H, G, C)
        before = torch.where(placed.first.unsqueeze(-1), n, _previous(here))
        there = torch.cat([before, here], dim=-1).unsqueeze(-2)  # (B, H, G, 1, 2C)
        keys, values = (torch.cat([_previous(x), x], dim=3) for x in (keys, values))
        scores = queries @ keys.mT / math.sqrt(q.shape[-1])  # (B, H, G, C, 2C)
        here = here.unsqueeze(-1)
        scores = scores.masked_fill(there > here, -torch.inf)  # later, or empty
        scores = scores.masked_fill(there == here, OWN_POSITION)
        log_sum = scores.logsumexp(-1, keepdim=True)
        y = (scores - log_sum).exp() @ values
        return tuple(_rows(x.flatten(2, 3), placed.place) for x in (y, log_sum))

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
    ) -> HashedCache:
        shape = (batch_size, n_heads, max_len or FIRST_CACHE_LEN)
        wide = torch.promote_types(dtype, torch.float32)
        keys = torch.zeros(*shape, head_dim, dtype=wide, device=device)
        values = keys.new_zeros(*shape, value_dim or head_dim)
        bucket = keys.new_zeros(*shape, len(self.rotations), dtype=torch.int64)
        return HashedCache(keys, values, bucket, torch.zeros_like(bucket), 0)

    def step(self, state: HashedCache, q, k, v):
        """Add one position and attend with it; the cache is written in place, and copied to one of
        twice its capacity where it is full."""
        *caches, length = state
        if not isinstance(length, Tensor) and length == caches[0].shape[2]:
            caches = [torch.cat([x, torch.zeros_like(x)], dim=2) for x in caches]
        keys, values, bucket, rank = caches
        q, at = q.to(keys.dtype), torch.as_tensor(length, device=q.device).view(1)
        rotations = self.rotations.to(q.dtype)
        rounds = [buckets(q, rotation, self.n_buckets) for rotation in rotations]
        own = torch.stack(rounds, dim=-1).unsqueeze(2)  # (B, H, 1, T)
        position = torch.arange(keys.shape[2], device=q.device).view(-1, 1)  # (P, 1)
        own_rank = ((bucket == own) & (position < at)).sum(2, keepdim=True)
        added = (normalize(q, dim=-1)[:, :, None], v[:, :, None].to(values.dtype), own, own_rank)
        for cache, x in zip(caches, added, strict=True):
            cache.index_copy_(2, at, x)
        chunks_before = own_rank // self.chunk_len - rank // self.chunk_len
        seen = (bucket == own) & (chunks_before <= 1) & (position <= at)  # (B, H, P, T)
        scores = torch.einsum("bhd,bhpd->bhp", q, keys) / math.sqrt(q.shape[-1])
        scores = scores.masked_fill((position == at).squeeze(-1), OWN_POSITION).unsqueeze(-1)
        scores = scores.masked_fill(~seen, -torch.inf)
        log_sum = scores.logsumexp(2, keepdim=True)
        weights = ((scores - log_sum).exp() * log_sum.softmax(-1)).sum(-1)
        y = torch.einsum("bhp,bhpm->bhm", weights, values).to(v.dtype)
        following = length.add_(1) if isinstance(length, Tensor) else length + 1
        return y, HashedCache(*caches, following)

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
        rounds = int(cls.resolve(implementation).split()[0])
        places = 2 * batch_size * n_heads * seq_len * max(itemsize, 4)  # half of them empty
        a_round = places * (2 * CHUNK_LEN * 3 + 8 * head_dim)
        return a_round * (rounds + 2 if backward else 1) + places * head_dim * rounds

    @classmethod
    def operations(cls, *, seq_len, head_dim, causal, implementation=None):
        if not causal:
            return seq_len**2 * 4.0 * head_dim / EFFICIENCY
        rounds = int(cls.resolve(implementation).split()[0])
        scores = rounds * 2 * seq_len * 2 * CHUNK_LEN
        return scores * (4.0 * head_dim / EFFICIENCY + OPERATIONS_PER_SCORE)


def buckets(x: Tensor, rotation: Tensor, n_buckets: int) -> Tensor:
    """argmax [x R, -x R] (Reformer, section 2): (B, H, N, D), R (D, many) -> (B, H, N)."""
    rotated = x @ rotation[:, : n_buckets // 2]
    if n_buckets == 1:
        return x.new_zeros(x.shape[:-1], dtype=torch.int64)
    return torch.cat([rotated, -rotated], dim=-1).argmax(-1)


def places(bucket: Tensor, n_buckets: int, chunk_len: int) -> Places:
    """Put positions into chunks, a bucket after the other and each in order: (B, H, N)."""
    n = bucket.shape[-1]
    order = bucket.argsort(dim=-1, stable=True)
    sorted_bucket = bucket.gather(-1, order)
    counts = bucket.new_zeros(*bucket.shape[:-1], n_buckets)
    counts.scatter_add_(-1, bucket, torch.ones_like(bucket))
    n_chunks = -(-counts // chunk_len)
    first_chunk, first_rank = n_chunks.cumsum(-1) - n_chunks, counts.cumsum(-1) - counts
    rank = torch.arange(n, device=bucket.device) - first_rank.gather(-1, sorted_bucket)
    sorted_place = first_chunk.gather(-1, sorted_bucket) * chunk_len + rank
    most_chunks = n // chunk_len + n_buckets  # a bucket leaves one chunk in part empty at most
    position = bucket.new_full((*bucket.shape[:-1], most_chunks * chunk_len), n)
    position.scatter_(-1, sorted_place, order)
    place = torch.empty_like(bucket).scatter_(-1, order, sorted_place)
    first = bucket.new_zeros((*bucket.shape[:-1], most_chunks + 1), dtype=torch.bool)
    first.scatter_(-1, first_chunk, True)
    return Places(place, position, first[..., :-1])


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """Rows of x (B, H, N, D) by index (B, H, S) -> (B, H, S, D)."""
    return x.gather(2, index.unsqueeze(-1).expand(-1, -1, -1, x.shape[-1]))


def _previous(x: Tensor) -> Tensor:
    """The chunk before each, (B, H, G, ...); the first has the last, which its mask hides."""
    return x.roll(1, dims=2)
