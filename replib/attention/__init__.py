"""The attention mechanisms by name. Controls, legends, grids and tests follow this registry."""

from replib.attention.base import Attention
from replib.attention.delta import DeltaAttention, delta_rule
from replib.attention.dpfp import DPFPAttention
from replib.attention.fwm import FWMAttention
from replib.attention.linear import LinearAttention, linear_attention
from replib.attention.linformer import LinformerAttention, linformer_attention
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
    "linformer": LinformerAttention,
}


def causal_names() -> tuple[str, ...]:
    """The mechanisms that can be a decoder's."""
    return tuple(name for name, mechanism in ATTENTION.items() if mechanism.causal)


__all__ = [
    "ATTENTION",
    "Attention",
    "causal_names",
    "delta_rule",
    "linear_attention",
    "linformer_attention",
    "softmax_attention",
]
