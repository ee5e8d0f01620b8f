"""Performer: linear attention with FAVOR+ features, whose inner product has the expectation of the
softmax's exp(q·k / sqrt(D)) (Choromanski et al. 2021, *Rethinking Attention with Performers*).

D query/key size, m random directions, R = 2·m features.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from replib.attention.base import Attention, check_qkv, repeat_heads
from replib.attention.feature_maps import favor_exponents, favor_queries, orthogonal_directions
from replib.attention.linear import FeatureAttention, exactly, linear_attention, without_padding
from replib.kernels.operator import without_what_is_not_finite

# Random features of distant vectors are small, and the normaliser with them: an eps like the 1e-6
# of linear attention would outweigh it.
FAVOR_EPS = 1e-30
SEED = 0
# How far the running largest exponent of a head may rise from its first key to its last so that
# one factor for all keys leaves their features, and products with queries', in float32's range.
MOST_RISE = 25.0
LOWEST = -1e30  # the largest exponent of no key
CHUNK_LEN = 64


class PerformerState(NamedTuple):
    """s = Σ φ(k_j) v_jᵀ (B, G, R, M) and z = Σ φ(k_j) (B, G, R), both divided by exp(largest), the
    largest feature of a key so far (B, G)."""

    s: Tensor
    z: Tensor
    largest: Tensor


class PerformerAttention(FeatureAttention):
    """Linear attention with FAVOR+ features; the implementation is the number m of random
    directions, "64" to "512".

    Features are divided by their largest, which the normaliser cancels: those of a query by its
    own, those of keys by the head's. Causal, a key that is still to come must not make those before
    it vanish, so the divisor is the largest so far where that rises by more than MOST_RISE; the
    computation is then in plain torch, chunk by chunk.

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

    label = "Performer"
    implementations = ("64", "128", "512")
    eps = FAVOR_EPS

    def __init__(
        self, *, head_dim: int, implementation: str | None = None, redraw_every: int | None = None
    ):
        super().__init__(implementation=implementation)
        if redraw_every is not None and redraw_every < 1:
            raise ValueError(f"redraw_every {redraw_every}: use at least 1, or None to keep them")
        n_directions = int(self.resolve(implementation))
        self.redraw_every = redraw_every
        if redraw_every is not None:
            self.register_buffer("n_calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("directions", torch.empty(head_dim, n_directions))
        self.resample(torch.Generator().manual_seed(SEED))

    @classmethod
    def for_model(cls, *, n_heads, head_dim, max_len, implementation=None) -> Attention:
        return cls(head_dim=head_dim, implementation=implementation)

    def resample(self, generator: torch.Generator) -> None:
        """Draw other directions."""
        self.directions.copy_(orthogonal_directions(*self.directions.shape, generator))

    def _redraw(self) -> None:
        n_calls = int(self.n_calls)
        if n_calls and n_calls % self.redraw_every == 0:
            seed = SEED + n_calls // self.redraw_every
            self.resample(torch.Generator().manual_seed(seed))
        self.n_calls += 1

    @classmethod
    def n_features(cls, head_dim, implementation=None):
        return 2 * int(cls.resolve(implementation))

    def _features(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Features of queries, each divided by its largest, and the exponents of those of keys."""
        directions = self.directions.to(q.dtype)
        scale = q.shape[-1] ** -0.25  # of q and of k: exp(q·k / sqrt(D))
        return favor_queries(q * scale, directions), favor_exponents(k * scale, directions)

    def forward(self, q, k, v, *, causal=True, key_padding_mask=None):
        if self.redraw_every is not None and self.training:
            self._redraw()
        if causal:
            return self._causal(None, q, k, v, key_padding_mask)[0]
        check_qkv(q, k, v, causal=False, key_padding_mask=key_padding_mask)
        with exactly(q):
            q, exponents, v = self._without_padding(q, k, v, key_padding_mask, causal=False)
            if k.shape[2]:
                largest = exponents.detach().amax((2, 3), keepdim=True).clamp(min=LOWEST)
                exponents = exponents - largest
            return self._attend(q, exponents.exp(), v, causal=False)

    def prefill(self, state: PerformerState, q, k, v, *, key_padding_mask=None):
        return self._causal(state, q, k, v, key_padding_mask)

    def _without_padding(self, q, k, v, key_padding_mask, causal: bool):
        """Features of queries and exponents of those of keys, float32 or wider, and values."""
        wide = torch.promote_types(q.dtype, torch.float32)
        mask = None if key_padding_mask is None else key_padding_mask[:, None, :, None]
        if mask is not None:
            q, k, v = without_padding(q, k, v, mask, causal)
        q, exponents = self._features(q.to(wide), k.to(wide))
        if mask is not None:
            exponents = exponents.masked_fill(mask, -torch.inf)
        return q, exponents, v

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> Tensor:
        return linear_attention(q, k, v, causal=causal, feature_map="identity", eps=self.eps)

    def _causal(self, state: PerformerState | None, q, k, v, key_padding_mask):
        """y and the state after it; from no state, the one kernel may do."""
        check_qkv(q, k, v, causal=True, key_padding_mask=key_padding_mask)
        dtype = v.dtype
        with exactly(q):
            if state is not None:
                q, k, v = (x.to(state.s.dtype) for x in (q, k, v))
            q, exponents, v = self._without_padding(q, k, v, key_padding_mask, causal=True)
            if state is None and _rises_little(exponents):
                largest = exponents.detach().amax((2, 3), keepdim=True).clamp(min=LOWEST)
                return self._attend(q, (exponents - largest).exp(), v, causal=True), None
            if state is None:
                b, g, m = *k.shape[:2], v.shape[-1]
                state = self.init_state(b, g, k.shape[-1], m, dtype=q.dtype, device=q.device)
            y, state = _chunk_by_chunk(state, q, exponents, v.to(q.dtype), self.eps)
            return y.to(dtype), state

    def init_state(
        self, batch_size, n_heads, head_dim, value_dim=None, **options
    ) -> PerformerState:
        s, z = super().init_state(batch_size, n_heads, head_dim, value_dim, **options)
        return PerformerState(s, z, z.new_full(z.shape[:2], LOWEST))

    def step(self, state: PerformerState, q, k, v):
        dtype = v.dtype
        with exactly(q):
            q, k, v = (x.to(state.s.dtype) for x in (q, k, v))
            q, exponents = self._features(q, k)  # (B, H, R), (B, G, R)
            largest = torch.maximum(state.largest, exponents.detach().amax(-1))
            decay = (state.largest - largest).exp().unsqueeze(-1)
            k = (exponents - largest.unsqueeze(-1)).exp()
            s = torch.addcmul(state.s * decay.unsqueeze(-1), k.unsqueeze(-1), v.unsqueeze(-2))
            state = PerformerState(s, state.z * decay + k, largest)
            return self._read(state, q).to(dtype), state

    @torch.no_grad()
    def step_(self, state: PerformerState, q, k, v):
        (s, z, before), dtype = state, v.dtype
        with exactly(q):
            if dtype != s.dtype:
                q, k, v = (x.to(s.dtype) for x in (q, k, v))
            q, exponents = self._features(q, k)
            largest = torch.maximum(before, exponents.amax(-1))
            decay = (before - largest).exp_().unsqueeze(-1)
            k = exponents.sub_(largest.unsqueeze(-1)).exp_()
            s.mul_(decay.unsqueeze(-1)).addcmul_(k.unsqueeze(-1), v.unsqueeze(-2))
            z.mul_(decay).add_(k)
            return self._read(state, q).to(dtype), PerformerState(s, z, largest)


def _rises_little(exponents: Tensor) -> bool:
    """Whether the largest exponent of a key so far rises by no more than MOST_RISE in any head.

    A trace has no numbers to ask, nor have the tensors of a transform.
    """
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    if exponents.numel() == 0:
        return False
    so_far = exponents.detach().amax(-1).clamp(min=LOWEST).cummax(2).values  # (B, H, N)
    first = so_far.masked_fill(so_far == LOWEST, torch.inf).amin(2)
    return bool((so_far[:, :, -1] - first <= MOST_RISE).all())


def _chunk_by_chunk(state: PerformerState, q: Tensor, exponents: Tensor, v: Tensor, eps: float):
    """Causal attention after a state, and the state after it, for features of any size: those of a
    chunk's keys are divided by their own largest, its weights (C, C) and the state by the largest
    so far.
    """
    h, groups = q.shape[1], state.s.shape[1]
    exponents, v = repeat_heads(exponents, h), repeat_heads(v, h)
    if q.shape[2] == 0:
        return v, PerformerState(*(x.clone() for x in state))
    q, exponents, v, seen = without_what_is_not_finite(q, exponents, v, elu1=True)
    s, z, before = (repeat_heads(x, h) for x in state)
    before, y = before.unsqueeze(-1), []
    chunks = (x.split(CHUNK_LEN, 2) for x in (q, exponents, v))
    for q_c, exponents_c, v_c in zip(*chunks, strict=True):
        own = exponents_c.detach().amax(-1).clamp(min=LOWEST)  # (B, H, C)
        largest = torch.maximum(own.cummax(2).values, before)
        keys = (exponents_c - own.unsqueeze(-1)).exp()
        decay = (own.unsqueeze(2) - largest.unsqueeze(3)).clamp(max=0).exp()
        weights = (q_c @ keys.mT * decay).tril()  # (B, H, C, C)
        from_state = (before - largest).exp().unsqueeze(-1)
        denominator = (
            weights.sum(-1, keepdim=True)
            + (q_c * z.unsqueeze(2)).sum(-1, keepdim=True) * from_state
        )
        y.append((weights @ v_c + q_c @ s * from_state) / (denominator + eps))
        last = largest[:, :, -1:]
        keys = keys * (own - last).exp().unsqueeze(-1)
        fade = (before - last).exp()
        s = s * fade.unsqueeze(-1) + keys.mT @ v_c
        z, before = z * fade + keys.sum(2), last
    one = slice(None, None, h // groups)  # of the heads that share a state
    state = PerformerState(s[:, one], z[:, one], before[:, one, 0])
    return torch.cat(y, 2) + seen, state
