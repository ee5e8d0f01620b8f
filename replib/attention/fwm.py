"""The write rule of the Fast Weight Memory (Schlag, Munkhdalai & Schmidhuber 2021, *Learning
Associative Inference Using Fast Weight Memory*) as attention, read after each write.

B batch, H heads, N sequence length, D query/key size, R feature size, M value size per head. The
paper's W (M, R) is kept transposed, as in `delta`: `DeltaState.s` is Wᵀ (R, M).
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from replib.attention.base import Attention, check_qkv
from replib.attention.delta import DeltaAttention, DeltaState
from replib.attention.feature_maps import feature_map_named
from replib.checks import check_known
from replib.plain import without_autocast

FEATURES = ("tanh", "dpfp1")  # with which it was published; "tanh" is that of the paper's own
NORM_EPS = 1e-5  # of the layer normalisation of what is read


class FWMAttention(DeltaAttention):
    """The delta rule, after which a memory of a norm above 1 is divided by it:

        W ← W_{i-1} + β_i (v_i - W_{i-1} φ(k_i)) φ(k_i)ᵀ,   W_i = W / max(1, |W|),
        y_i = layer_norm(W_i φ(q_i))

    with the Frobenius norm, and a layer normalisation over M without parameters. The norm is what
    lets features of both signs be written, as those of tanh are: nothing normalises them, and the
    delta rule alone would let W grow without bound where β |φ(k)|² is above 2. It is a loop over
    positions in torch.

    Deviation: the published code of Schlag, Irie & Schmidhuber 2021 does not divide after the first
    write (and so `kernels.fwm`, which reproduces it); here every write is alike, as in the paper of
    2021 on the memory itself. β is one of the head's key, as in `DeltaAttention`.

    Not causal, every query reads the memory after the last write.
    """

    @dataclass(frozen=True, kw_only=True)
    class Options(Attention.Options):
        """The features, "tanh" (R = D) or "dpfp1" (R = 2·D)."""

        features: str = "tanh"

        def __post_init__(self):
            check_known(self, features=FEATURES)

        @property
        def label(self) -> str:
            return self.features

    label = "fast weight memory"
    offered = (Options(features="tanh"), Options(features="dpfp1"))
    kernels = ()

    def n_features(self, head_dim):
        return head_dim * (2 if self.options.features == "dpfp1" else 1)

    def forward(self, q, k, v, *, causal=True, key_padding_mask=None):
        check_qkv(q, k, v, causal=causal, key_padding_mask=key_padding_mask)
        wide = torch.promote_types(k.dtype, v.dtype)
        state = self.init_state(*k.shape[:2], k.shape[-1], v.shape[-1], dtype=wide, device=k.device)
        return self._all(state, q, k, v, key_padding_mask, causal=causal)[0]

    def _write(self, s, key, value, beta):
        s = super()._write(s, key, value, beta)
        return s / torch.linalg.vector_norm(s, dim=(1, 2), keepdim=True).clamp(min=1)

    def _normalised_read(self, y):
        return layer_norm(y, y.shape[-1:], eps=NORM_EPS) if 0 not in y.shape else y

    def prefill(self, state: DeltaState, q, k, v, *, key_padding_mask=None):
        check_qkv(q, k, v, causal=True, key_padding_mask=key_padding_mask)
        return self._all(state, q, k, v, key_padding_mask, causal=True)

    def _all(self, state: DeltaState, q, k, v, padding: Tensor | None, *, causal: bool):
        """Write all positions, one after the other, and read after each, or after the last."""
        q, k, v, beta = self.writes(q, k, v, padding, causal=causal)
        s, heads = state.s.flatten(0, 1), k.shape[:2]
        with without_autocast(q.device.type):
            # The queries of the heads of a group, at each position: (B·G, L, H/G, R).
            query = q.unflatten(1, (heads[1], -1)).flatten(0, 1).transpose(1, 2).to(s.dtype)
            n_queries, n_heads = query.shape[1:3]
            tensors = [x.flatten(0, 1).unsqueeze(2) for x in (k, v, beta.unsqueeze(-1))]
            # A slice at each position would cost O(N²) in the backward pass.
            rows = (x.to(s.dtype).unbind(1) for x in (*tensors, *[query] * causal))
            reads = [torch.bmm(query.flatten(1, 2)[:, :0], s)]
            for key, value, rate, *one in zip(*rows, strict=True):
                s = self._write(s, key, value, rate)
                reads += [torch.bmm(x, s) for x in one]
            y = torch.cat(reads, dim=1) if causal else torch.bmm(query.flatten(1, 2), s)
            y = self._normalised_read(y)
            y = y.view(*heads, n_queries, n_heads, v.shape[-1]).transpose(2, 3).flatten(1, 2)
        return y.to(v.dtype), DeltaState(s.view(state.s.shape))

    def _features(self, x: Tensor) -> Tensor:
        phi = feature_map_named(self.options.features)
        return phi(x.to(torch.promote_types(x.dtype, torch.float32)))
