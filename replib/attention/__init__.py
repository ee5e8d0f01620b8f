"""The attention mechanisms by name. Controls, legends, grids and tests follow this registry."""

from replib.attention.base import Attention
from replib.attention.delta import DeltaAttention, delta_rule
from replib.attention.dpfp import DPFPAttention
from replib.attention.fwm import FWMAttention
from replib.attention.linear import LinearAttention, linear_attention
from replib.attention.lsh import LSHAttention
from replib.attention.performer import PerformerAttention
from replib.attention.relu import ReluAttention
from replib.attention.softmax import SoftmaxAttention, softmax_attention

ATTENTION: dict[str, type[Attention]] = {
    "softmax": SoftmaxAttention,
    "linear": LinearAttention,
    "relu": ReluAttention,
    "performer": PerformerAttention,
    "dpfp": DPFPAttention,
    "delta": DeltaAttention,
    "fwm": FWMAttention,
    "lsh": LSHAttention,
}


__all__ = ["ATTENTION", "Attention", "delta_rule", "linear_attention", "softmax_attention"]
