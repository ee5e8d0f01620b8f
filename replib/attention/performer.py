"""Performer: linear attention with FAVOR+ features, whose inner product has the expectation of the
softmax's exp(q·k / sqrt(D)) (Choromanski et al. 2021, *Rethinking Attention with Performers*).

D query/key size, m random directions, R = 2·m features.
"""

import torch

from replib.attention.base import Attention
from replib.attention.feature_maps import favor_keys, favor_queries, orthogonal_directions
from replib.attention.linear import FeatureAttention

# Random features of distant vectors are small, and the normaliser with them: an eps like the 1e-6
# of linear attention would outweigh it.
FAVOR_EPS = 1e-20
SEED = 0


class PerformerAttention(FeatureAttention):
    """Linear attention with FAVOR+ features; the implementation is the number m of random
    directions, "64" to "512".

    Resampling: the directions are drawn once, when it is built, from a generator of the seed
    `SEED`, the same for every head, layer and run; they are a buffer, which a checkpoint keeps.
    `resample` draws others; nothing here calls it. The original code draws anew every so many steps
    of training, if asked to.
    """

    label = "Performer"
    implementations = ("64", "128", "512")
    eps = FAVOR_EPS

    def __init__(self, *, head_dim: int, implementation: str | None = None):
        super().__init__(implementation=implementation)
        n_directions = int(self.resolve(implementation))
        self.register_buffer("directions", torch.empty(head_dim, n_directions))
        self.resample(torch.Generator().manual_seed(SEED))

    @classmethod
    def for_model(cls, *, n_heads, head_dim, max_len, implementation=None) -> Attention:
        return cls(head_dim=head_dim, implementation=implementation)

    def resample(self, generator: torch.Generator) -> None:
        """Draw other directions."""
        self.directions.copy_(orthogonal_directions(*self.directions.shape, generator))

    @classmethod
    def n_features(cls, head_dim, implementation=None):
        return 2 * int(cls.resolve(implementation))

    def features(self, q, k):
        directions = self.directions.to(q.dtype)
        scale = q.shape[-1] ** -0.25  # of q and of k: exp(q·k / sqrt(D))
        return favor_queries(q * scale, directions), favor_keys(k * scale, directions)
