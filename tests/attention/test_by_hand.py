"""The start page's two functions against the library's."""

import pytest
import torch

from replib.attention import linear_attention
from replib.attention.by_hand import as_matrix, as_rnn


@pytest.mark.parametrize("seq_len", [1, 7, 32])
@pytest.mark.parametrize("feature_map", ["elu1", "relu", "dpfp1", "dpfp2"])
def test_matrix_and_rnn_are_linear_attention(feature_map, seq_len):
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, seq_len, 5, dtype=torch.float64, generator=generator)
    v = v[:, :3]
    y = linear_attention(q[None, None], k[None, None], v[None, None], feature_map=feature_map)
    torch.testing.assert_close(as_matrix(q, k, v, feature_map), y[0, 0])
    steps = [y_i for y_i, _, _ in as_rnn(q, k, v, feature_map)]
    torch.testing.assert_close(torch.stack(steps), y[0, 0])


def test_the_state_is_all_that_the_next_position_needs():
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 9, 4, dtype=torch.float64, generator=generator)
    *_, (_, s, z) = as_rnn(q, k, v)
    features = torch.where(k > 0, k + 1, k.exp())
    torch.testing.assert_close(s, torch.einsum("nr,nm->rm", features, v))
    torch.testing.assert_close(z, features.sum(0))
