"""The attention mechanisms by name. Controls, legends, grids and tests follow this registry."""

from replib.attention.base import Attention
from replib.attention.linear import LinearAttention, linear_attention
from replib.attention.softmax import SoftmaxAttention, softmax_attention

ATTENTION: dict[str, type[Attention]] = {
    "softmax": SoftmaxAttention,
    "linear": LinearAttention,
}

__all__ = ["ATTENTION", "Attention", "linear_attention", "softmax_attention"]
