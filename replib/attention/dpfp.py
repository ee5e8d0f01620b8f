"""Linear attention with the features of *Linear Transformers Are Secretly Fast Weight Memory
Systems* (Schlag, Irie & Schmidhuber 2021, section 5.3): DPFP-ν, R = 2·D·ν."""

from dataclasses import dataclass

from replib.attention.base import Attention
from replib.attention.feature_maps import check_nu, dpfp
from replib.attention.linear import FeatureAttention


class DPFPAttention(FeatureAttention):
    """Linear attention with DPFP features."""

    @dataclass(frozen=True, kw_only=True)
    class Options(Attention.Options):
        """ν of DPFP-ν."""

        nu: int = 1

        def __post_init__(self):
            check_nu(self.nu)

        @property
        def label(self) -> str:
            return f"nu{self.nu}"

    label = "DPFP"
    offered = (Options(nu=1), Options(nu=2), Options(nu=3))  # the sizes of Schlag et al. 2021

    def n_features(self, head_dim):
        return 2 * head_dim * self.options.nu

    def features(self, q, k):
        return dpfp(q, self.options.nu), dpfp(k, self.options.nu)
