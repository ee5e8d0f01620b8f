"""A block of a model without dropout, for one position of each sequence or for several.

B batch, N sequence length, E model size, H heads, G heads of keys and values, D size per head.

Weights are at hand as plain tensors, and results of one position go to buffers that are allocated
once.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, linear

from replib.models import Block, MultiHeadAttention

PACKED_FROM = 4  # rows for which products with packed weights are faster


class Layer:
    """A `Block` without dropout, for one position or for several."""

    def __init__(
        self,
        block: Block,
        batch_size: int,
        memory: Tensor | None,
        memory_mask: Tensor | None,
    ):
        attend, cross = block.self_attention, block.cross_attention
        first, _, _, last = block.feedforward
        self.pre, self.attend, self.attention = block.pre, attend, attend.attention
        self.qkv, self.out = product(attend.to_qkv, batch_size), product(attend.out, batch_size)
        self.grouped = attend.n_kv_heads < attend.n_heads
        self.by_head = (batch_size, 3, attend.n_heads, attend.head_dim)
        self.cross = None if cross is None else _Cross(cross, batch_size, memory, memory_mask)
        self.first, self.last = product(first, batch_size), product(last, batch_size)
        self.norms = [norm_of(norm) for norm in block.norms]

    def step(self, state: Any, x: Tensor) -> tuple[Tensor, Any]:
        """(B, E) -> (B, E) and the next state, which may be the given one."""
        qkv = self.qkv(self._before(0, x))
        if self.grouped:
            q, k, v = (x[:, :, 0] for x in self.attend.by_head(qkv.unsqueeze(1)))
        else:
            q, k, v = qkv.view(self.by_head).unbind(1)  # each (B, H, D)
        y, state = self.attention.step_(state, q, k, v)
        x = self._after(0, x, self.out(y.flatten(1)))
        if self.cross is not None:
            x = self._after(1, x, self.cross(self._before(1, x)))
        h = self.last(self.first(self._before(-1, x)).relu_())
        return self._after(-1, x, h), state

    def prefill(self, state: Any, x: Tensor, padding_mask: Tensor | None) -> tuple[Tensor, Any]:
        """(B, N, E) -> (B, N, E) and the state after these positions."""
        q, k, v = self.attend.by_head(self.qkv.of_many(self._before(0, x)))
        masking = {} if padding_mask is None else {"key_padding_mask": padding_mask}
        y, state = self.attention.prefill(state, q, k, v, **masking)
        x = self._after(0, x, self.out.of_many(y.transpose(1, 2).flatten(2)))
        if self.cross is not None:
            x = self._after(1, x, self.cross.of_many(self._before(1, x)))
        h = self.last.of_many(self.first.of_many(self._before(-1, x)).relu_())
        return self._after(-1, x, h), state

    def _before(self, i: int, x: Tensor) -> Tensor:
        return self.norms[i](x) if self.pre else x

    def _after(self, i: int, x: Tensor, h: Tensor) -> Tensor:
        return x + h if self.pre else self.norms[i](x + h)


class _Cross:
    """Attention of positions to a memory, whose keys and values are computed once."""

    def __init__(
        self,
        cross: MultiHeadAttention,
        batch_size: int,
        memory: Tensor,
        memory_mask: Tensor | None,
    ):
        e, masking = memory.shape[-1], {}
        if memory_mask is not None:
            masking = {"key_padding_mask": memory_mask}
        self.attend = cross.attention.over(*cross.keys_values(memory), **masking)
        self.by_head = (cross.n_heads, cross.head_dim)
        self.q = Product(cross.to_qkv.weight[:e], cross.to_qkv.bias[:e], batch_size)
        self.out = product(cross.out, batch_size)

    def __call__(self, x: Tensor) -> Tensor:
        """(B, E) -> (B, E)."""
        q = self.q(x).view(len(x), *self.by_head).unsqueeze(2)  # (B, H, 1, D)
        return self.out(self.attend(q).flatten(1))

    def of_many(self, x: Tensor) -> Tensor:
        """(B, N, E) -> (B, N, E)."""
        q = self.q.of_many(x).unflatten(-1, self.by_head).transpose(1, 2)
        return self.out.of_many(self.attend(q).transpose(1, 2).flatten(2))


class Product:
    """x Wᵀ + b of one position of each sequence, (B, K) -> (B, N).

    On a CPU one row is a product with a vector, which takes about a third of `addmm`'s time for the
    sizes of a small model; two or three rows are (W xᵀ)ᵀ + b; more are given to oneDNN with the
    weights in an order of its own (about half the time at B = 32), where torch has that.
    """

    def __init__(self, weight: Tensor, bias: Tensor, batch_size: int):
        self.weight, self.bias, self.batch_size = weight.detach(), bias.detach(), batch_size
        self.y = weight.new_empty(batch_size, len(weight))
        self.columns = weight.new_empty(len(weight), batch_size)
        self.version, self.packed = -1, None
        on_cpu = weight.device.type == "cpu"
        self._compute = self._direct
        if on_cpu and batch_size == 1 and weight.dtype in (torch.float32, torch.float64):
            self._compute = self._with_vector
        elif on_cpu and batch_size >= PACKED_FROM and self._packs():
            self._compute = self._with_packed
        elif on_cpu and batch_size > 1:
            self._compute = self._with_columns

    def __call__(self, x: Tensor) -> Tensor:
        return self._compute(x)

    def of_many(self, x: Tensor) -> Tensor:
        """x Wᵀ + b of several positions, (B, N, K) -> a new (B, N, N')."""
        return linear(x, self.weight, self.bias)

    def _direct(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x, self.weight.t(), out=self.y)

    def _with_vector(self, x: Tensor) -> Tensor:
        torch.addmv(self.bias, self.weight, x[0], out=self.y[0])
        return self.y

    def _with_columns(self, x: Tensor) -> Tensor:
        torch.mm(self.weight, x.t(), out=self.columns)
        return torch.add(self.columns.t(), self.bias, out=self.y)

    def _with_packed(self, x: Tensor) -> Tensor:
        if self.weight._version != self.version:  # changed in place
            self._pack()
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")

    def _pack(self) -> None:
        self.version = self.weight._version
        self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight, self.batch_size)

    def _packs(self) -> bool:
        """Whether this torch packs weights: its operators for that are not a public interface."""
        if self.weight.dtype != torch.float32 or not torch.backends.mkldnn.is_available():
            return False
        x = self.weight.new_ones(self.batch_size, self.weight.shape[1])
        try:
            return torch.allclose(self._with_packed(x), self._with_columns(x), 1e-3, 1e-3)
        except (AttributeError, NotImplementedError, RuntimeError, TypeError):
            return False


def product(layer: nn.Linear, batch_size: int) -> Product:
    return Product(layer.weight, layer.bias, batch_size)


def norm_of(norm: nn.LayerNorm) -> Callable[[Tensor], Tensor]:
    shape, weight, bias, eps = norm.normalized_shape, norm.weight, norm.bias, norm.eps
    weight, bias = weight.detach(), bias.detach()
    return lambda x: layer_norm(x, shape, weight, bias, eps)
