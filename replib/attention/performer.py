"""Performer: linear attention with FAVOR+ features, whose inner product has the expectation of the
softmax's exp(q·k / sqrt(D)) (Choromanski et al. 2021, *Rethinking Attention with Performers*).

D query/key size, m random directions, R = 2·m features.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from replib.attention.base import Attention, check_qkv, repeat_heads
from replib.attention.feature_maps import favor_exponents, orthogonal_directions
from replib.attention.linear import FeatureAttention, linear_attention
from replib.attention.padding import without_padding
from replib.checks import check_numbers
from replib.plain import without_autocast, without_what_is_not_finite

# Of sums of features that are divided by their largest: what an eps like the 1e-6 of linear
# attention would outweigh.
FAVOR_EPS = 1e-30
SEED = 0
MAX_DIRECTIONS = 2**14  # more is taken for a slip
# One divisor for all keys of a head is enough, causal, where the largest exponent so far rises by
# no more than this from the first key to the last, and no ωᵀk is larger than that: products of
# features are then within float32's range, with room to spare.
MOST_RISE, MOST_PROJECTION = 25.0, 45.0
LOWEST = -1e30  # the largest exponent of no key
CHUNK_LEN = 64


class PerformerState(NamedTuple):
    """s = Σ φ(k_j) v_jᵀ (B, G, R, M) and z = Σ φ(k_j) (B, G, R), divided by the exponential of
    `largest` (B, G, R), the largest exponent of each feature so far."""

    s: Tensor
    z: Tensor
    largest: Tensor


class PerformerAttention(FeatureAttention):
    """Linear attention with FAVOR+ features.

    exp(-|k|²/2) leaves float32's range where keys are long. Features of keys are therefore divided
    by the largest of the head, or each by its largest, which those of queries are multiplied by;
    those of a query are then divided by their largest. All of it cancels. Causal, a key that is
    still to come must not make those before it vanish: the largest is that so far, as in a
    streaming softmax, in plain torch chunk by chunk where one divisor for all would not do.

    Resampling: the directions are drawn when it is built, from a generator of the seed `SEED`, the
    same for every head, layer and run; they are a buffer, which a checkpoint keeps. `resample`
    draws others. Choromanski et al. 2021 redraw them periodically in training, as the original code
    does if asked to; so does `redraw_every` here.

    Args:
        redraw_every: draw other directions at every so many calls of `forward` in training, from
            the seed SEED + the number of draws; None leaves them as drawn. The calls are counted
            in a buffer. Not with activation checkpointing, which calls `forward` twice.

    Raises:
        ValueError: redraw_every is less than 1.
    """

    @dataclass(frozen=True, kw_only=True)
    class Options(Attention.Options):
        """The number m of random directions."""

        n_directions: int = 64

        def __post_init__(self):
            check_numbers(self, n_directions=MAX_DIRECTIONS)

        @property
        def label(self) -> str:
            return str(self.n_directions)

    label = "Performer"
    offered = (
        Options(n_directions=64),
        Options(n_directions=128),
        Options(n_directions=512),
    )
    eps = FAVOR_EPS

    def __init__(
        self, *, head_dim: int, options=None, kernel=None, redraw_every: int | None = None
    ):
        super().__init__(options=options, kernel=kernel)
        if redraw_every is not None and redraw_every < 1:
            raise ValueError(f"redraw_every {redraw_every}: use at least 1, or None to keep them")
        self.redraw_every = redraw_every
        if redraw_every is not None:
            self.register_buffer("n_calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("directions", torch.empty(head_dim, self.options.n_directions))
        self.reset_buffers()

    def reset_buffers(self) -> None:
        self.resample(torch.Generator().manual_seed(SEED))
        if self.redraw_every is not None:
            self.n_calls.zero_()

    @classmethod
    def for_model(cls, *, n_heads, head_dim, max_len, options=None, kernel=None) -> Attention:
        return cls(head_dim=head_dim, options=options, kernel=kernel)

    def resample(self, generator: torch.Generator) -> None:
        """Draw other directions."""
        self.directions.copy_(orthogonal_directions(*self.directions.shape, generator))

    def _redraw(self) -> None:
        n_calls = int(self.n_calls)
        if n_calls and n_calls % self.redraw_every == 0:
            seed = SEED + n_calls // self.redraw_every
            self.resample(torch.Generator().manual_seed(seed))
        self.n_calls += 1

    def n_features(self, head_dim):
        return 2 * self.options.n_directions

    def _exponents(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Of the features of queries and of keys."""
        directions = self.directions.to(q.dtype)
        scale = q.shape[-1] ** -0.25  # of q and of k: exp(q·k / sqrt(D))
        return favor_exponents(q * scale, directions), favor_exponents(k * scale, directions)

    def forward(self, q, k, v, *, causal=True, key_padding_mask=None):
        if self.redraw_every is not None and self.training:
            self._redraw()
        if causal:
            return self._causal(None, q, k, v, key_padding_mask)[0]
        check_qkv(q, k, v, causal=False, key_padding_mask=key_padding_mask)
        with without_autocast(q.device.type):
            q, k, v = self._without_padding(q, k, v, key_padding_mask, causal=False)
            if k.shape[2]:
                largest = k.detach().amax(2, keepdim=True).clamp(min=LOWEST)
                q, k = q + repeat_heads(largest, q.shape[1]), k - largest
            return self._attend(_stabilised(q), k.exp(), v, causal=False)

    def prefill(self, state: PerformerState, q, k, v, *, key_padding_mask=None):
        return self._causal(state, q, k, v, key_padding_mask)

    def _without_padding(self, q, k, v, key_padding_mask, causal: bool):
        """Exponents of queries and of keys, float32 or wider, and values."""
        wide = torch.promote_types(q.dtype, torch.float32)
        q, k, v = without_padding(q, k, v, key_padding_mask, causal=causal)
        q, k = self._exponents(q.to(wide), k.to(wide))
        if key_padding_mask is not None:
            k = k.masked_fill(key_padding_mask[:, None, :, None], -torch.inf)
        return q, k, v

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> Tensor:
        return linear_attention(q, k, v, causal=causal, feature_map="identity", eps=self.eps)

    def _causal(self, state: PerformerState | None, q, k, v, key_padding_mask):
        """y and, of a state, the one after it."""
        check_qkv(q, k, v, causal=True, key_padding_mask=key_padding_mask)
        dtype, n_directions = v.dtype, self.directions.shape[1]
        with without_autocast(q.device.type):
            if state is not None:
                q, k, v = (x.to(state.s.dtype) for x in (q, k, v))
            q, k, v = self._without_padding(q, k, v, key_padding_mask, causal=True)
            if state is None and _one_divisor_does(k, n_directions):
                largest = k.detach().amax((2, 3), keepdim=True).clamp(min=LOWEST)
                return self._attend(_stabilised(q), (k - largest).exp(), v, causal=True), None
            if state is None:
                (b, g, _, r), m = k.shape, v.shape[-1]
                s, z = k.new_zeros((b, g, r, m)), k.new_zeros((b, g, r))
                state = PerformerState(s, z, torch.full_like(z, LOWEST))
            y, state = _chunk_by_chunk(state, q, k, v)
            return y.to(dtype), state

    def init_state(
        self, batch_size, n_heads, head_dim, value_dim=None, **options
    ) -> PerformerState:
        s, z = super().init_state(batch_size, n_heads, head_dim, value_dim, **options)
        return PerformerState(s, z, torch.full_like(z, LOWEST))

    def step(self, state: PerformerState, q, k, v):
        (s, z, before), dtype = state, v.dtype
        with without_autocast(q.device.type):
            q, k, v = (x.to(s.dtype) for x in (q, k, v))
            q, k = self._exponents(q, k)  # (B, H, R), (B, G, R)
            largest = torch.maximum(before, k.detach())
            fade, k = (before - largest).exp(), (k - largest).exp()
            s = torch.addcmul(s * fade.unsqueeze(-1), k.unsqueeze(-1), v.unsqueeze(-2))
            state = PerformerState(s, z * fade + k, largest)
            q = _stabilised(q + repeat_heads(largest, q.shape[1]))
            return self._read(state, q).to(dtype), state

    def step_(self, state: PerformerState, q, k, v):
        if torch.is_grad_enabled():
            with torch.no_grad():
                return self.step_(state, q, k, v)
        (s, z, before), dtype = state, v.dtype
        with without_autocast(q.device.type):
            q, k, v = q.to(s.dtype), k.to(s.dtype), v.to(s.dtype)
            q, k = self._exponents(q, k)
            largest = torch.maximum(before, k)
            fade, k = before.sub_(largest).exp_(), k.sub_(largest).exp_()
            s.mul_(fade.unsqueeze(-1)).addcmul_(k.unsqueeze(-1), v.unsqueeze(-2))
            state = PerformerState(s, z.mul_(fade).add_(k), largest)
            q = _stabilised(q + repeat_heads(largest, q.shape[1]))
            return self._read(state, q).to(dtype), state


def _stabilised(exponents: Tensor) -> Tensor:
    """Features of queries, each divided by its largest."""
    return (exponents - exponents.detach().amax(-1, keepdim=True)).exp()


def _one_divisor_does(exponents: Tensor, n_directions: int) -> bool:
    """Whether one divisor for all keys of a head leaves their features in float32's range.

    A trace has no numbers to ask, nor have the tensors of a transform.
    """
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    if exponents.numel() == 0:
        return False
    exponents = exponents.detach()
    own = exponents.amax(-1).clamp(min=LOWEST)
    so_far = own.cummax(2).values  # (B, H, N)
    first = so_far.masked_fill(so_far == LOWEST, torch.inf).amin(2)
    # Of ωᵀk and -ωᵀk, both less |k|²/2, the mean is the latter.
    less = (exponents[..., 0] + exponents[..., n_directions]) / 2
    projection = (own - less).masked_fill(own == LOWEST, 0)
    rise = so_far[:, :, -1] - first
    return bool((rise <= MOST_RISE).all() & (projection <= MOST_PROJECTION).all())


def _chunk_by_chunk(state: PerformerState, q: Tensor, k: Tensor, v: Tensor):
    """Causal attention after a state, and the state after it, of exponents of any size.

    Within a chunk each query and each key is divided by its own largest feature, in float64, and
    weights by the exponential of the largest exponent that a row has so far.
    """
    h, groups, dtype = q.shape[1], state.s.shape[1], state.s.dtype
    k, v = repeat_heads(k, h), repeat_heads(v.to(q.dtype), h)
    if q.shape[2] == 0:
        return v, PerformerState(*(x.clone() for x in state))
    q, k, v, seen = without_what_is_not_finite(q, k, v, elu1=True)
    wide, eps = dtype, FAVOR_EPS
    if not torch.compiler.is_compiling() and q.device.type != "mps":  # which has no float64
        wide, eps = torch.float64, 1e-280
    s, z, before = (repeat_heads(x, h).to(wide) for x in state)
    y = []
    chunks = (x.to(wide).split(CHUNK_LEN, 2) for x in (q, k, v))
    for q_c, k_c, v_c in zip(*chunks, strict=True):
        with torch.no_grad():
            of_query, of_key = q_c.amax(-1), k_c.amax(-1).clamp(min=LOWEST)  # (B, H, C)
            of_state = (q_c + before.unsqueeze(2)).amax(-1)
            largest = torch.maximum(of_query + of_key.cummax(2).values, of_state)
            fade = (of_key.unsqueeze(2) + (of_query - largest).unsqueeze(3)).clamp(max=0).exp()
            after = torch.maximum(before, k_c.amax(2))  # (B, H, R)
        queries = (q_c - of_query.unsqueeze(-1)).exp()
        keys = (k_c - of_key.unsqueeze(-1)).exp()
        weights = (queries @ keys.mT * fade).tril()  # (B, H, C, C)
        to_state = (q_c + (before.unsqueeze(2) - largest.unsqueeze(3))).exp()
        den = weights.sum(-1, keepdim=True) + to_state @ z.unsqueeze(3) + eps
        y.append((weights @ v_c + to_state @ s) / den)
        keys, fade = (k_c - after.unsqueeze(2)).exp(), (before - after).exp()
        s = s * fade.unsqueeze(-1) + keys.mT @ v_c
        z, before = z * fade + keys.sum(2), after
    one = slice(None, None, h // groups)  # of the heads that share a state
    state = PerformerState(*(x[:, one].to(dtype) for x in (s, z, before)))
    return torch.cat(y, 2) + seen, state
