"""Linear attention twice, as equations and nothing else: what the start page shows.

N sequence length, D query/key size, M value size, R feature size; one head, no batch. For use take
`replib.attention.linear_attention`, which computes the same.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from replib.attention.feature_maps import feature_map_named
from replib.attention.linear import EPS


def as_matrix(q: Tensor, k: Tensor, v: Tensor, feature_map: str = "elu1") -> Tensor:
    """Causal linear attention by a matrix of N x N weights: Katharopoulos et al. 2020, eq. 4 and 9;
    (N, D), (N, D), (N, M) -> (N, M)."""
    phi = feature_map_named(feature_map)
    similarity = phi(q) @ phi(k).T  # (N, N)
    seen = similarity.tril()  # a position sees itself and what came before it
    weights = seen / (seen.sum(dim=1, keepdim=True) + EPS)  # a row sums to 1
    return weights @ v  # (N, M)


def as_rnn(
    q: Tensor, k: Tensor, v: Tensor, feature_map: str = "elu1"
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The same a position at a time, with the state s (R, M) and z (R,) after it: eq. 16-20; yields
    y (M,), s and z."""
    phi = feature_map_named(feature_map)
    s, z = 0, 0
    for q_i, k_i, v_i in zip(phi(q), phi(k), v, strict=True):
        s = s + torch.outer(k_i, v_i)  # what was seen: (R, M)
        z = z + k_i  # how much of it: (R,)
        yield q_i @ s / (q_i @ z + EPS), s, z
