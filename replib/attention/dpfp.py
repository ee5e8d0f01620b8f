"""Linear attention with the features of *Linear Transformers Are Secretly Fast Weight Memory
Systems* (Schlag, Irie & Schmidhuber 2021, section 5.3): DPFP-ν, R = 2·D·ν."""

from dataclasses import dataclass

from torch import Tensor

from replib.attention.base import Attention, check_qkv, repeat_heads
from replib.attention.feature_maps import check_nu, dpfp
from replib.attention.linear import FeatureAttention, LinearState

SUM_EPS = 1e-6  # added to the sum of a token's features, as in the published code


def summing_to_1(features: Tensor) -> Tensor:
    """Features (..., R) over their sum; all 0 where none is above 0."""
    return features / (features.sum(-1, keepdim=True) + SUM_EPS)


class DPFPAttention(FeatureAttention):
    """Linear attention with DPFP features.

    Not normalised, features sum to 1 (section 4.2, "sum normalisation") and nothing is divided by
    z·φ(q): y_i = Σ_{j<=i} v_j φ(k_j)·φ(q_i).
    """

    @dataclass(frozen=True, kw_only=True)
    class Options(Attention.Options):
        """ν of DPFP-ν, and whether what is read is divided by z·φ(q), z being the sum of all φ(k):
        None is as published best, a sum is and the delta rule is not."""

        nu: int = 1
        normalised: bool | None = None

        def __post_init__(self):
            check_nu(self.nu)

        @property
        def label(self) -> str:
            names = {None: "", True: " normalised", False: " not normalised"}
            return f"nu{self.nu}{names[self.normalised]}"

    label = "DPFP"
    offered = (Options(nu=1), Options(nu=2), Options(nu=3))  # the sizes of Schlag et al. 2021

    def n_features(self, head_dim):
        return 2 * head_dim * self.options.nu

    def features(self, q, k):
        q, k = dpfp(q, self.options.nu), dpfp(k, self.options.nu)
        return (q, k) if self._divides else (summing_to_1(q), summing_to_1(k))

    @property
    def _divides(self) -> bool:
        return self.options.normalised is not False

    def forward(self, q, k, v, *, causal=True, key_padding_mask=None):
        masking = {"key_padding_mask": key_padding_mask}
        if self._divides:
            return super().forward(q, k, v, causal=causal, **masking)
        check_qkv(q, k, v, causal=causal, **masking)
        sizes = *k.shape[:2], k.shape[-1], v.shape[-1]
        state = self.init_state(*sizes, dtype=k.dtype, device=k.device)
        if causal:
            return self.prefill(state, q, k, v, **masking)[0]
        _, (s, _) = self.prefill(state, k, k, v, **masking)
        q, _ = self.features(q.to(s.dtype), k.to(s.dtype))
        return (q @ repeat_heads(s, q.shape[1])).to(v.dtype)

    def _read(self, state: LinearState, q: Tensor) -> Tensor:
        return self._undivided(super()._read(state, q), q, state.z)

    def _read_all(self, state: LinearState, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        y = super()._read_all(state, q, k, v)
        return self._undivided(y, q, state.z.unsqueeze(2) + k.cumsum(2))

    def _undivided(self, y: Tensor, q: Tensor, z: Tensor) -> Tensor:
        """What is read, times what it was divided by where nothing should be."""
        if self._divides:
            return y
        return y * ((q * repeat_heads(z, q.shape[1])).sum(-1, keepdim=True) + self.eps)
