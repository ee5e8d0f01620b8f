"""The attention mechanisms by name. Controls, legends, grids and tests follow this registry."""

from replib.attention.base import Attention
from replib.attention.delta import DeltaAttention
from replib.attention.dpfp import DPFPAttention
from replib.attention.linear import LinearAttention, linear_attention
from replib.attention.lsh import LSHAttention
from replib.attention.performer import PerformerAttention
from replib.attention.softmax import SoftmaxAttention, softmax_attention

ATTENTION: dict[str, type[Attention]] = {
    "softmax": SoftmaxAttention,
    "linear": LinearAttention,
    "performer": PerformerAttention,
    "dpfp": DPFPAttention,
    "delta": DeltaAttention,
    "lsh": LSHAttention,
}

__all__ = ["ATTENTION", "Attention", "linear_attention", "softmax_attention"]
