"""How much of each value the attention of a trained model takes.

B batch, H heads, L target length, N source length.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from replib.models import MultiHeadAttention


@contextmanager
def recorded_inputs(model: nn.Module) -> Iterator[dict[nn.Module, tuple[Tensor, Tensor]]]:
    """The queries and keys that the mechanism of each layer was given last."""
    found: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def keep(mechanism: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        found[mechanism] = arguments[:2]

    layers = [m for m in model.modules() if isinstance(m, MultiHeadAttention)]
    handles = [layer.attention.register_forward_pre_hook(keep) for layer in layers]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def weights(mechanism: nn.Module, q: Tensor, k: Tensor, *, causal: bool = False) -> Tensor:
    """How much of each value a query takes, (B, H, L, N): what it reads where value j is the j-th
    unit vector. Any mechanism is linear in its values."""
    n = k.shape[2]
    units = torch.eye(n, dtype=k.dtype, device=k.device).expand(*k.shape[:2], n, n)
    return mechanism(q, k, units, causal=causal)
