"""The write rule of the Fast Weight Memory (Schlag, Munkhdalai & Schmidhuber 2021, *Learning
Associative Inference Using Fast Weight Memory*) as attention, read after each write.

B batch, H heads, N sequence length, D query/key size, R feature size, M value size per head. The
paper's W (M, R) is kept transposed, as in `delta`: `DeltaState.s` is Wᵀ (R, M).
"""

import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from replib.attention import delta
from replib.attention.base import check_qkv
from replib.attention.delta import DeltaAttention, DeltaState
from replib.attention.feature_maps import feature_map_named

FEATURES = ("tanh", "dpfp1")  # with which it was published; "tanh" is that of the paper's own
NORM_EPS = 1e-5  # of the layer normalisation of what is read
EFFICIENCY = 0.01  # share of a matrix product's rate: a loop over positions is bound by its calls


class FWMAttention(DeltaAttention):
    """The delta rule, after which a memory of a norm above 1 is divided by it:

        W ← W_{i-1} + β_i (v_i - W_{i-1} φ(k_i)) φ(k_i)ᵀ,   W_i = W / max(1, |W|),
        y_i = layer_norm(W_i φ(q_i))

    with the Frobenius norm, and a layer normalisation over M without parameters. The norm is what
    lets features of both signs be written, as those of tanh are: nothing normalises them, and the
    delta rule alone would let W grow without bound where β |φ(k)|² is above 2. The implementation
    names the features, "tanh" (R = D) or "dpfp1" (R = 2·D); it is a loop over positions in torch.

    Deviation: the published code of Schlag, Irie & Schmidhuber 2021 does not divide after the first
    write (and so `kernels.fwm`, which reproduces it); here every write is alike, as in the paper of
    2021 on the memory itself. β is one of the head's key, as in `DeltaAttention`.

    Not causal, every query reads the memory after the last write.
    """

    label = "fast weight memory"
    implementations = FEATURES
    sources = ("replib.attention.delta", *DeltaAttention.sources)

    @classmethod
    def n_features(cls, head_dim, implementation=None):
        return head_dim * (2 if cls.resolve(implementation) == "dpfp1" else 1)

    def forward(self, q, k, v, *, causal=True, key_padding_mask=None):
        check_qkv(q, k, v, causal=causal, key_padding_mask=key_padding_mask)
        with torch.autocast(q.device.type, enabled=False):
            beta = self._beta(k, "bhnd,hd->bhn")
            if key_padding_mask is not None:
                beta = beta.masked_fill(key_padding_mask[:, None], 0)
            q, k = self._features(q), self._features(k)
            s, reads = delta._empty(k, v), []
            rows = (k, v, beta.unsqueeze(-1), *[q] * causal)
            for key, value, rate, *query in delta._rows(s.dtype, *rows):
                s = _write(s, key, value, rate)
                reads += [torch.bmm(one, s) for one in query]
            y = torch.cat(reads, dim=1) if causal else torch.bmm(q.flatten(0, 1).to(s.dtype), s)
            y = layer_norm(y, y.shape[-1:], eps=NORM_EPS)
        return y.unflatten(0, q.shape[:2]).to(v.dtype)

    def step(self, state: DeltaState, q, k, v):
        s = state.s.flatten(0, 1)
        with torch.autocast(s.device.type, enabled=False):
            beta = self._beta(k, "bhd,hd->bh")
            rows = (self._features(q), self._features(k), v)
            query, key, value = (x.flatten(0, 1).unsqueeze(1).to(s.dtype) for x in rows)
            s = _write(s, key, value, beta.reshape(-1, 1, 1).to(s.dtype))
            y = layer_norm(torch.bmm(query, s), v.shape[-1:], eps=NORM_EPS)
        return y.view(v.shape).to(v.dtype), DeltaState(s.view(state.s.shape))

    def _features(self, x: Tensor) -> Tensor:
        """φ(x), (..., D) -> (..., R), float32 or wider."""
        phi = feature_map_named(self.resolve(self.implementation))
        return phi(x.to(torch.promote_types(x.dtype, torch.float32)))

    @classmethod
    def unavailable(cls, implementation, *, device_type, dtype, head_dim):
        return None

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
        if backward:  # a memory for each position, before and after it is divided
            return rows * r * head_dim * max(itemsize, 4) * 2
        return rows * (r + head_dim) * max(itemsize, 4) * 5

    @classmethod
    def operations(cls, *, seq_len, head_dim, causal, implementation=None):
        r = cls.n_features(head_dim, implementation)
        # A product to recall, one to write, one to read; the norm, and a division.
        return seq_len * r * head_dim * 9.0 / EFFICIENCY


def _write(s: Tensor, key: Tensor, value: Tensor, beta: Tensor) -> Tensor:
    """s (B·H, R, M), key (B·H, 1, R), value (B·H, 1, M), beta (B·H, 1, 1)."""
    s = delta._write(s, key, value, beta)
    return s / torch.linalg.vector_norm(s, dim=(1, 2), keepdim=True).clamp(min=1)
