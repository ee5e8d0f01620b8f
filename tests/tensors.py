"""Random queries, keys and values, and gradients along random directions.

B batch, H heads, N sequence length, D query/key size, M value size.
"""

import torch


def random_qkv(n, *, b=2, h=3, d=8, m=5, n_keys=None, scale=1.0, dtype=torch.float64, seed=0):
    """q, k (B, H, N, D) and v (B, H, N, M), drawn in float64."""
    generator = torch.Generator().manual_seed(seed)
    sizes = ((n, d), (n_keys or n, d), (n_keys or n, m))
    drawn = (torch.randn(b, h, *s, generator=generator, dtype=torch.float64) for s in sizes)
    return [(scale * x).to(dtype) for x in drawn]


def gradients(y, inputs, seed=1):
    """Along a random dy; 0 for what y does not depend on."""
    generator = torch.Generator().manual_seed(seed)
    dy = torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.dtype)
    options = {"allow_unused": True, "retain_graph": True, "materialize_grads": True}
    return torch.autograd.grad(y, inputs, dy, **options)
