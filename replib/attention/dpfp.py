"""Linear attention with the features of *Linear Transformers Are Secretly Fast Weight Memory
Systems* (Schlag, Irie & Schmidhuber 2021, section 5.3): DPFP-ν, R = 2·D·ν."""

from replib.attention.feature_maps import DPFP_NU, dpfp
from replib.attention.linear import FeatureAttention


class DPFPAttention(FeatureAttention):
    """Linear attention with DPFP features; the implementation is ν, "nu1" to "nu3"."""

    label = "DPFP"
    implementations = tuple(f"nu{nu}" for nu in DPFP_NU)

    @classmethod
    def nu(cls, implementation: str | None) -> int:
        """ν of an implementation."""
        return DPFP_NU[cls.implementations.index(cls.resolve(implementation))]

    @classmethod
    def n_features(cls, head_dim, implementation=None):
        return 2 * head_dim * cls.nu(implementation)

    def features(self, q, k):
        nu = self.nu(self.implementation)
        return dpfp(q, nu), dpfp(k, nu)
