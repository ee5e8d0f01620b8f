"""A model that is given a token of each sequence at a time.

B batch, N sequence length, E model size, V vocabulary.

A `Decoder` computes what `model.step` does and is limited by its matrix products rather than by
Python: its layers are those of `replib.decoder_layers`, states advance in place, and on CUDA a step
is one launch of a recorded graph.
"""

import warnings
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from replib.attention.base import state_with
from replib.decoder_layers import Layer, norm_of, product
from replib.device import available_memory_bytes
from replib.layers import check_padding, embed_padded, positions_without
from replib.models import CausalTransformer, EncoderDecoder

MAX_BATCH = 65_536  # more is taken for a slip
MAX_POSITIONS = 2**24  # float32, in which sinusoids are computed, counts no further
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
        check_size("batch_size", batch_size, MAX_BATCH)
        if max_len is not None:
            check_size("max_len", max_len, model.embedding.n_positions or MAX_POSITIONS)
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
            Layer(block, batch_size, memory, self._source_padding_mask) for block in blocks
        ]
        self._norm, self._head = norm_of(model.norm), product(model.head, batch_size)
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
        check_position(position, self.max_len or MAX_POSITIONS)
        for i, state in enumerate(self.states):
            tensors = [x for x in state if isinstance(x, Tensor)]
            kept = [x for x in tensors if x.is_floating_point()]
            if hasattr(state, "length"):
                check_position(position, kept[0].shape[2])
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


def check_size(name: str, value: int, most: int) -> None:
    if not 1 <= value <= most:
        raise ValueError(f"{name} {value}: use 1 to {most}")


def check_position(position: int, room: int) -> None:
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
