"""Token-by-token decoding from a trained model.

B batch, N sequence length, E model size, H heads, G heads of keys and values, D size per head,
V vocabulary.

A `Decoder` computes what `model.step` does and is limited by its matrix products rather than by
Python: weights are at hand as plain tensors, results go to buffers that are allocated once, states
advance in place, and on CUDA a step is one launch of a recorded graph.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from itertools import islice
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, linear

from replib.attention.base import state_with
from replib.device import available_memory_bytes
from replib.layers import check_padding, embed_padded, positions_without
from replib.models import Block, CausalTransformer, EncoderDecoder, MultiHeadAttention
from replib.tasks import CausalCopy, Task

VERSION = 1  # raised when what is generated changes beyond rounding
SPEED = 1  # raised when a decoder becomes faster or slower: its recorded times are then old

MAX_BATCH = 65_536  # more is taken for a slip
MAX_POSITIONS = 2**24  # float32, in which sinusoids are computed, counts no further
PACKED_FROM = 4  # rows for which products with packed weights are faster
PREFILL_LEN = 4096  # positions of a prompt taken at once: what bounds the memory of a longer one


def _in_own_dtype(method):
    """A method of a decoder in the dtype of the weights, under autocast too: casts of the weights
    for every token would take longer than its products."""

    @wraps(method)
    @torch.inference_mode()
    def wrapped(decoder, *arguments, **options):
        if not torch.is_autocast_enabled(decoder.device.type):
            return method(decoder, *arguments, **options)
        with torch.autocast(decoder.device.type, enabled=False):
            return method(decoder, *arguments, **options)

    return wrapped


class Decoder:
    """A model that is given one token of each sequence at a time, or a prompt at once.

    It follows a change of the model's weights in place, but no move to another device or dtype.
    Dropout takes no part, nor does autocast.

    Args:
        batch_size: B.
        max_len: positions that will be taken at most; a cache is allocated for them at once.
            Without it a cache grows by doubling, and there is no end: sinusoids go on beyond the
            positions that the model was built for.
        memory: what `EncoderDecoder.encode` gave, (B, N', E).
        source_padding_mask: (B, N') bool, True where that is of padding.
        graph: on CUDA, record a step as a CUDA graph. Its shapes are fixed: softmax attends to all
            of `max_len` under a mask, and has no graph without it.

    Attributes:
        position: of the next token, where padding counts.
        states: of the blocks, before that token.

    Example:
        >>> decoder = Decoder(model, batch_size=1)
        >>> logits = decoder.prefill(prompt)
        >>> logits = decoder.step(logits.argmax(-1))

    Raises:
        ValueError: a size is out of range or too large for the memory, or the memory is missing.
    """

    def __init__(
        self,
        model: CausalTransformer | EncoderDecoder,
        batch_size: int,
        *,
        max_len: int | None = None,
        memory: Tensor | None = None,
        source_padding_mask: Tensor | None = None,
        graph: bool = True,
    ):
        _check_size("batch_size", batch_size, MAX_BATCH)
        if max_len is not None:
            _check_size("max_len", max_len, model.embedding.n_positions or MAX_POSITIONS)
        if isinstance(model, EncoderDecoder) != (memory is not None):
            raise ValueError("an EncoderDecoder, and no other model, needs the memory it encoded")
        self.model, self.batch_size, self.max_len = model, batch_size, max_len
        self.device = model.head.weight.device
        self._memory, self._source_padding_mask = memory, source_padding_mask
        self._prepare(graph)

    @_in_own_dtype
    def _prepare(self, graph: bool) -> None:
        model, batch_size, memory = self.model, self.batch_size, self._memory
        self._graph: torch.cuda.CUDAGraph | None = None
        self.position = 0
        self._padding: Tensor | None = None  # (B,) of each row so far
        blocks = model.decoding_blocks()
        _check_memory(blocks, batch_size, self.max_len or 1)
        memory = None if memory is None else memory.to(model.head.weight.dtype)
        self._layers = [
            _Layer(block, batch_size, memory, self._source_padding_mask) for block in blocks
        ]
        self._norm, self._head = _norm(model.norm), _product(model.head, batch_size)
        self.states = self._fresh_states()
        fixed = self.max_len is not None or _shapes_are_fixed(self.states)
        if graph and fixed and self.device.type == "cuda":
            self._try_to_record()

    @_in_own_dtype
    def step(self, token: Tensor) -> Tensor:
        """The next token (B,) of each sequence -> logits (B, V) for the one after it.

        Raises:
            ValueError: the token has another shape, or there is no position left for it.
        """
        if token.shape != (self.batch_size,):
            raise ValueError(f"token has shape {tuple(token.shape)}: use ({self.batch_size},)")
        self._check_room(1)
        position = self.position if self._padding is None else self.position - self._padding
        if self._graph is None:
            logits = self._advance(token, position, self.position + 1)
        else:
            self._token.copy_(token)
            if isinstance(position, Tensor):
                self._position.copy_(position)
            else:
                self._position.fill_(position)
            self._graph.replay()
            logits = self._logits
        self.position += 1
        return logits.clone()

    @_in_own_dtype
    def prefill(self, tokens: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """The next tokens (B, N) of each sequence, N >= 1, at once -> logits (B, V) for the one
        after the last of each.

        Args:
            padding_mask: (B, N) bool, True at padding, on either side.

        Raises:
            ValueError: tokens or mask have another shape, a sequence is empty, or there are no
                positions left for them.
        """
        if tokens.dim() != 2 or len(tokens) != self.batch_size:
            raise ValueError(f"tokens have shape {tuple(tokens.shape)}: use ({self.batch_size}, N)")
        if padding_mask is not None:
            check_padding(padding_mask, tokens)
        if tokens.shape[1] == 0 or (padding_mask is not None and padding_mask.all(1).any()):
            raise ValueError("a prompt is empty: give at least one token")
        self._check_room(tokens.shape[1])
        states, last = list(self.states), None
        masks = [None] if padding_mask is None else padding_mask.split(PREFILL_LEN, dim=1)
        parts = tokens.split(PREFILL_LEN, dim=1)
        for part, mask in zip(parts, masks if len(masks) > 1 else masks * len(parts), strict=True):
            x = self._embedded(part, mask)
            for i, layer in enumerate(self._layers):
                x, states[i] = layer.prefill(states[i], x, mask)
            last = _last(x, mask, last)
            self.position += part.shape[1]
            if mask is not None:
                more = mask.sum(1)
                self._padding = more if self._padding is None else self._padding + more
        self._go_on_from(states)
        return self._head(self._norm(last)).clone()

    @_in_own_dtype
    def fork(self, rows: Tensor | None = None) -> "Decoder":
        """Another decoder that goes on from here, and leaves this one as it is.

        Args:
            rows: (B',) which sequences it continues, each as often as it is named: samples of one
                prompt, or the beams that are kept. Without them it is all.

        Example:
            >>> samples = decoder.fork(torch.zeros(8, dtype=torch.long))
        """
        if rows is None:
            rows = torch.arange(self.batch_size, device=self.device)

        def picked(x: Tensor | None) -> Tensor | None:
            return x if x is None else x[rows] if x.dim() else x.clone()

        other = Decoder(
            self.model,
            len(rows),
            max_len=self.max_len,
            memory=picked(self._memory),
            source_padding_mask=picked(self._source_padding_mask),
            graph=self._graph is not None,
        )
        other.position, other._padding = self.position, picked(self._padding)
        other._go_on_from([_mapped(picked, state) for state in self.states])
        return other

    @_in_own_dtype
    def reorder(self, rows: Tensor) -> None:
        """Go on as if row i had taken the tokens of row `rows[i]`, (B,), which has the same source:
        the beams that are kept."""
        self._go_on_from(
            [_mapped(lambda x: x[rows] if x.dim() else x, state) for state in self.states]
        )

    def _check_room(self, n: int) -> None:
        n_positions = self.max_len or self.model.embedding.n_positions or MAX_POSITIONS
        if self.position + n > n_positions:
            taken = "all" if self.position == n_positions else f"{self.position} of"
            raise ValueError(f"{taken} {n_positions} positions are taken: use a larger max_len")

    def _embedded(self, tokens: Tensor, padding_mask: Tensor | None) -> Tensor:
        """The next tokens (B, N) -> (B, N, E)."""
        below, first = self.position + tokens.shape[1], self.position
        if self._padding is not None:
            first = (first - self._padding).unsqueeze(-1)  # (B, 1)
        if padding_mask is not None:
            first = first.squeeze(-1) if isinstance(first, Tensor) else first
            positions = positions_without(padding_mask, first)

            def embed(tokens: Tensor) -> Tensor:
                return self.model.embedding.step(tokens, positions, below)

            return embed_padded(embed, tokens, padding_mask)
        positions = first + torch.arange(tokens.shape[1], device=self.device)
        return self.model.embedding.step(tokens, positions, below)

    def _fresh_states(self) -> list[Any]:
        return list(self.model.init_state(self.batch_size, self.max_len).blocks)

    def _go_on_from(self, states: list[Any]) -> None:
        """Take states for one's own; those of a graph take what they hold."""
        if self._graph is None:
            self.states = states
            return
        if any(
            x.shape != y.shape
            for mine, given in zip(self.states, states, strict=True)
            for x, y in zip(mine, given, strict=True)
        ):  # a cache of prompts with padding says where it is
            self._record(like=states)
        for mine, given in zip(self.states, states, strict=True):
            for x, y in zip(mine, given, strict=True):
                x.copy_(y)

    @property
    def state_bytes(self) -> int:
        """What is kept between two tokens: the tensors of all states, as allocated."""
        return sum(x.nbytes for state in self.states for x in state if isinstance(x, Tensor))

    @_in_own_dtype
    def jump(self, position: int, generator: torch.Generator | None = None) -> None:
        """Stand before a position as if random tokens had led there; 0 starts afresh.

        What a state holds of them is drawn from the generator, and is zero without one. A cache
        needs room for them: `max_len`.

        Raises:
            ValueError: there is no such position, or no room.
        """
        _check_position(position, self.max_len or MAX_POSITIONS)
        for i, state in enumerate(self.states):
            tensors = [x for x in state if isinstance(x, Tensor)]
            kept = [x for x in tensors if x.is_floating_point()]
            if hasattr(state, "length"):
                _check_position(position, kept[0].shape[2])
                self.states[i] = state._replace(length=_filled(state.length, position))
            for x in tensors:
                if x.dtype == torch.bool:  # padding
                    x.zero_()
            for x in kept:
                x.zero_() if generator is None else x.normal_(generator=generator).abs_()
        self.position, self._padding = position, None

    def _advance(self, token: Tensor, position: int | Tensor, below: int | None) -> Tensor:
        x = self.model.embedding.step(token, position, below)
        for i, layer in enumerate(self._layers):
            x, self.states[i] = layer.step(self.states[i], x)
        return self._head(self._norm(x))

    def _try_to_record(self) -> None:
        try:
            self._record()
        except RuntimeError as error:
            warnings.warn(f"decoding without a CUDA graph, slower: {error}", stacklevel=3)
            self._graph = None
            self.states = self._fresh_states()

    def _record(self, like: list[Any] | None = None) -> None:
        """Record a step from states of the shapes of fresh ones, or of others."""
        device = self.device
        # Kernels are compiled and libraries allocate at a first call, which no graph may hold.
        self._start_in_fixed_shapes(like)
        side = torch.cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            self._advance_in_fixed_shapes()
        torch.cuda.current_stream(device).wait_stream(side)
        self._start_in_fixed_shapes(like)
        graph = torch.cuda.CUDAGraph()
        # Other threads may go on using the device meanwhile.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._advance_in_fixed_shapes()
        self._graph = graph

    def _start_in_fixed_shapes(self, like: list[Any] | None = None) -> None:
        """Fresh states, token and position, where all that changes is the contents of tensors."""
        self._token = torch.zeros(self.batch_size, dtype=torch.int64, device=self.device)
        self._position = torch.zeros_like(self._token)
        self.states = []  # their memory is free before the fresh ones are allocated
        if like is not None:
            self.states = [_mapped(torch.zeros_like, state) for state in like]
            return
        self.states = [
            state_with(state, (torch.as_tensor(x, device=self.device) for x in state))
            for state in self._fresh_states()
        ]

    def _advance_in_fixed_shapes(self) -> None:
        """From `_token` and `_position` to `_logits`."""
        states = list(self.states)
        self._logits = self._advance(self._token, self._position, self.max_len)
        for before, after in zip(states, self.states, strict=True):
            for old, new in zip(before, after, strict=True):
                if new is not old:
                    old.copy_(new)
        self.states = states


def _check_size(name: str, value: int, most: int) -> None:
    if not 1 <= value <= most:
        raise ValueError(f"{name} {value}: use 1 to {most}")


def _check_position(position: int, room: int) -> None:
    if not 0 <= position <= room:
        raise ValueError(f"position {position}: use 0 to {room}, or a larger max_len")


def _filled(length: int | Tensor, value: int) -> int | Tensor:
    return length.fill_(value) if isinstance(length, Tensor) else value


def _check_memory(blocks: nn.ModuleList, batch_size: int, max_len: int) -> None:
    attend = blocks[0].self_attention
    state = attend.init_state(batch_size, max_len, device="meta")
    needed = len(blocks) * sum(x.nbytes for x in state if isinstance(x, Tensor))
    free = available_memory_bytes(attend.to_qkv.weight.device)
    if needed > free:
        raise ValueError(
            f"the states of {batch_size} sequences of {max_len} positions take "
            f"{needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free: lower batch_size or max_len"
        )


def _shapes_are_fixed(states: list[Any]) -> bool:
    return all(isinstance(x, Tensor) for state in states for x in state)


def _mapped(function: Callable[[Tensor], Tensor], state: Any) -> Any:
    """A state with its tensors passed through a function."""
    return state_with(state, (function(x) if isinstance(x, Tensor) else x for x in state))


def _last(x: Tensor, padding_mask: Tensor | None, before: Tensor | None) -> Tensor:
    """x (B, N, E) at the last position of each row that is no padding; `before` without any."""
    if padding_mask is None:
        return x[:, -1]
    along = torch.arange(x.shape[1], device=x.device)
    last = along.expand_as(padding_mask).masked_fill(padding_mask, -1).amax(1)  # (B,)
    found = x[torch.arange(len(x), device=x.device), last]
    return found if before is None else torch.where((last >= 0).unsqueeze(-1), found, before)


class _Layer:
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
        self.qkv, self.out = _product(attend.to_qkv, batch_size), _product(attend.out, batch_size)
        self.grouped = attend.n_kv_heads < attend.n_heads
        self.by_head = (batch_size, 3, attend.n_heads, attend.head_dim)
        self.cross = None if cross is None else _Cross(cross, batch_size, memory, memory_mask)
        self.first, self.last = _product(first, batch_size), _product(last, batch_size)
        self.norms = [_norm(norm) for norm in block.norms]

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
        self.q = _Product(cross.to_qkv.weight[:e], cross.to_qkv.bias[:e], batch_size)
        self.out = _product(cross.out, batch_size)

    def __call__(self, x: Tensor) -> Tensor:
        """(B, E) -> (B, E)."""
        q = self.q(x).view(len(x), *self.by_head).unsqueeze(2)  # (B, H, 1, D)
        return self.out(self.attend(q).flatten(1))

    def of_many(self, x: Tensor) -> Tensor:
        """(B, N, E) -> (B, N, E)."""
        q = self.q.of_many(x).unflatten(-1, self.by_head).transpose(1, 2)
        return self.out.of_many(self.attend(q).transpose(1, 2).flatten(2))


class _Product:
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


def _product(layer: nn.Linear, batch_size: int) -> _Product:
    return _Product(layer.weight, layer.bias, batch_size)


def _norm(norm: nn.LayerNorm) -> Callable[[Tensor], Tensor]:
    shape, weight, bias, eps = norm.normalized_shape, norm.weight, norm.bias, norm.eps
    weight, bias = weight.detach(), bias.detach()
    return lambda x: layer_norm(x, shape, weight, bias, eps)


class Recompute:
    """A model that begins with the first token again for every new one, and keeps the tokens alone.

    This is the softmax baseline of Katharopoulos et al. 2020, tables 1 and 2. `step`, `prefill`,
    `jump` and `state_bytes` are as in a `Decoder`.

    Raises:
        ValueError: a size is out of range.
    """

    @torch.inference_mode()
    def __init__(self, model: CausalTransformer, batch_size: int, *, max_len: int):
        _check_size("batch_size", batch_size, MAX_BATCH)
        _check_size("max_len", max_len, len(model.embedding.sinusoids))
        self.model, self.batch_size, self.max_len = model, batch_size, max_len
        self.vocab_size, device = model.head.out_features, model.head.weight.device
        self.tokens = torch.zeros(batch_size, max_len, dtype=torch.int64, device=device)
        self.position = 0

    @torch.inference_mode()
    def step(self, token: Tensor) -> Tensor:
        """The next token (B,) of each sequence -> logits (B, V) for the one after it."""
        return self.prefill(token.unsqueeze(1))

    @torch.inference_mode()
    def prefill(self, tokens: Tensor) -> Tensor:
        """The next tokens (B, N) of each sequence -> logits (B, V) for the one after them."""
        following = self.position + tokens.shape[1]
        if following > self.max_len:
            raise ValueError(f"all {self.max_len} positions are taken: use a larger max_len")
        self.tokens[:, self.position : following] = tokens
        self.position = following
        return self.model(self.tokens[:, :following])[:, -1]

    @property
    def state_bytes(self) -> int:
        return self.tokens.nbytes

    @torch.inference_mode()
    def jump(self, position: int, generator: torch.Generator | None = None) -> None:
        _check_position(position, self.max_len)
        if generator is None:
            self.tokens.zero_()
        else:
            self.tokens.random_(self.vocab_size, generator=generator)
        self.position = position


class Stepper(Protocol):
    """What turns the next tokens into logits (B, V), such as a `Decoder`."""

    def step(self, token: Tensor) -> Tensor: ...

    def prefill(self, tokens: Tensor) -> Tensor: ...


Choose = Callable[[Tensor], Tensor]
"""How the next token (B,) follows from logits (B, V)."""


def most_likely(logits: Tensor) -> Tensor:
    """(B, V) -> (B,): greedy decoding."""
    return logits.argmax(-1)


def sampled(
    generator: torch.Generator, *, temperature: float = 1.0, top_k: int | None = None
) -> Choose:
    """Draw from softmax(logits / temperature), of the `top_k` most likely tokens alone.

    Raises:
        ValueError: the temperature or top_k is not above 0.
    """
    if not temperature > 0:
        raise ValueError(f"temperature {temperature}: use above 0, or most_likely")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k {top_k}: use at least 1, or None for all tokens")

    def choose(logits: Tensor) -> Tensor:
        if top_k is not None and top_k < logits.shape[-1]:
            least = logits.topk(top_k, dim=-1).values[:, -1:]
            logits = logits.masked_fill(logits < least, -torch.inf)
        shares = (logits.float() / temperature).softmax(-1)
        return torch.multinomial(shares, 1, generator=generator).squeeze(1)

    return choose


def padded(sequences: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Sequences of several lengths as one batch: tokens (B, N) and a mask (B, N), True at padding,
    which stands on the left."""
    tokens = nn.utils.rnn.pad_sequence(list(sequences), batch_first=True, padding_side="left")
    lengths = torch.tensor([len(x) for x in sequences], device=tokens.device)
    along = torch.arange(tokens.shape[1], 0, -1, device=tokens.device)
    return tokens, along > lengths.unsqueeze(1)


def stream(
    decoder: Stepper,
    prompt: Tensor,
    choose: Choose = most_likely,
    padding_mask: Tensor | None = None,
) -> Iterator[Tensor]:
    """Continue a prompt (B, N), N >= 1, without end, a token (B,) of each sequence at a time.

    Args:
        padding_mask: (B, N) bool, True at padding, where a `Decoder` continues prompts of several
            lengths; see `padded`.

    Raises:
        ValueError: a prompt is empty.
    """
    if prompt.shape[1] == 0:
        raise ValueError("the prompt is empty: give at least one token")
    masking = {} if padding_mask is None else {"padding_mask": padding_mask}
    logits = decoder.prefill(prompt, **masking)
    while True:
        token = choose(logits)
        yield token
        logits = decoder.step(token)


@torch.inference_mode()
def generate(
    model: CausalTransformer,
    prompt: Tensor,
    n_tokens: int,
    padding_mask: Tensor | None = None,
    *,
    choose: Choose = most_likely,
) -> Tensor:
    """Continue a prompt (B, N), N >= 1, by n tokens (B, n).

    Args:
        padding_mask: (B, N) bool, True at padding, on either side; see `padded`.
        choose: how a token (B,) follows from logits (B, V); the most likely one if left out.

    Raises:
        ValueError: a prompt is empty, or too long with what follows.
    """
    decoder = Decoder(model, len(prompt), max_len=prompt.shape[1] + n_tokens)
    tokens = stream(decoder, prompt, choose, padding_mask=padding_mask)
    produced = list(islice(tokens, n_tokens))
    return torch.stack(produced, dim=1) if produced else prompt[:, :0]


@torch.inference_mode()
def translate_greedily(
    model: EncoderDecoder,
    source: Tensor,
    start: int,
    end: int,
    max_len: int,
    source_padding_mask: Tensor | None = None,
) -> Tensor:
    """Decode from a source (B, N') until every row has ended or `max_len` tokens.

    Args:
        source_padding_mask: (B, N') bool, True at padding.

    Returns:
        (B, at most max_len) tokens without the start; rows that ended earlier repeat `end`.
    """
    was_training = model.training
    memory = model.eval().encode(source, source_padding_mask)
    model.train(was_training)
    masking = {"source_padding_mask": source_padding_mask}
    decoder = Decoder(model, len(source), max_len=max_len, memory=memory, **masking)
    start_token = source.new_full((len(source), 1), start)
    ended, produced = torch.zeros_like(source[:, 0], dtype=torch.bool), []

    def choose(logits: Tensor) -> Tensor:
        return most_likely(logits).masked_fill(ended, end)

    for token in islice(stream(decoder, start_token, choose), max_len):
        produced.append(token)
        ended |= token == end
        if ended.all():
            break
    return torch.stack(produced, dim=1)


def copy_with(model: CausalTransformer | EncoderDecoder, task: Task, symbols: Tensor) -> Tensor:
    """What a trained model gives back for symbols (B, n): (B, at most n) tokens.

    Raises:
        ValueError: the symbols are none, or too many for the task's length.
    """
    n = symbols.shape[1]
    most = task.lengths[-1] if isinstance(task, CausalCopy) else task.seq_len - 2
    if not 1 <= n <= most:
        raise ValueError(f"{n} symbols: a model of length {task.seq_len} copies 1 to {most}")
    if isinstance(task, CausalCopy):
        separator = symbols.new_zeros(len(symbols), 1)
        return generate(model, torch.cat([symbols, separator], dim=1), n)
    edge = symbols.new_ones(len(symbols), 1)
    source = torch.cat([edge * task.start, symbols, edge * task.end], dim=1)
    return translate_greedily(model, source, task.start, task.end, n)
