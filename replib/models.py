"""Transformers that take their attention by its registry name.

B batch, N sequence length, E model size (`d_model`), H heads, G heads of keys and values,
D = E / H size per head, V vocabulary. Hidden states are (B, N, E), tokens (B, N), logits (B, N, V).

Sequences of different lengths are padded on any side: a mask (B, N) is True at padding, whose
tokens are not looked at, and positions count the others, so that a row gives what it gives alone.
What is put out at padding means nothing.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from replib.attention import ATTENTION, Attention
from replib.attention.base import Options, state_with, variant_label
from replib.checks import check_known, check_numbers, check_share
from replib.layers import (
    POSITIONS,
    Dropout,
    Embedding,
    check_padding,
    embed_padded,
    positions_without,
)
from replib.packing import Packing

VERSION = 1  # raised when what a model computes, or how it starts, changes beyond rounding

MAX_LAYERS, MAX_D_MODEL, MAX_HEADS = 64, 8192, 128  # beyond them a size is taken for a slip


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Sizes and choices of a Transformer; the defaults are the paper's causal copy model.

    Attributes:
        attention: a name of `ATTENTION`.
        options: what the mechanism computes, of its own `Options`; None for its default.
        kernel: how, one of its `kernels`; None for the fastest.
        decoder_attention, cross_attention: of the tokens and to the encoder, where an
            encoder-decoder has other mechanisms there than `attention`; these have their default
            options.
        n_layers: blocks (in the encoder and again in the decoder, where there are both).
        d_model: E, shared among `n_heads` heads.
        d_feedforward: hidden size of the position-wise network.
        norm: "post" (as in the paper) or "pre" normalisation.
        dropout: of the blocks, and of the embedding where `embedding_dropout` is None; the original
            code has none at the embedding.
        positions: sinusoids "concatenated" to (the original code) or "added" to the embedding;
            "learned" vectors, "none", or a sinusoid of the "batch row" (`replib.layers.Embedding`).
        n_kv_heads: G, each shared by H / G queries' heads (grouped-query attention, Ainslie et al.
            2023); None for H.
        tied: the output layer has the weights of the embedding (Press & Wolf 2017), which then
            begins with a standard deviation of E^-1/2; not with "concatenated" positions.
    """

    attention: str = "linear"
    options: Options | None = None
    kernel: str | None = None
    n_layers: int = 4
    n_heads: int = 8
    d_model: int = 256
    d_feedforward: int = 1024
    norm: str = "post"
    dropout: float = 0.1
    positions: str = "concatenated"
    n_kv_heads: int | None = None
    embedding_dropout: float | None = None
    decoder_attention: str | None = None
    cross_attention: str | None = None
    tied: bool = False

    def __post_init__(self):
        for name in (self.attention, self.decoder_attention, self.cross_attention):
            if name is not None and name not in ATTENTION:
                raise ValueError(f"unknown attention {name!r}: use {', '.join(ATTENTION)}")
        ATTENTION[self.attention].check(self.options, self.kernel)
        check_numbers(self, n_layers=MAX_LAYERS, n_heads=MAX_HEADS, d_model=MAX_D_MODEL)
        check_numbers(self, d_feedforward=4 * MAX_D_MODEL)
        if self.d_model % self.n_heads or self.d_model % 2:
            heads = self.n_heads if self.n_heads % 2 == 0 else 2 * self.n_heads
            nearest = max(heads, round(self.d_model / heads) * heads)
            raise ValueError(
                f"d_model {self.d_model} is not an even multiple of n_heads {self.n_heads}: "
                f"use d_model {nearest}, or other n_heads"
            )
        check_known(self, norm=("post", "pre"), positions=POSITIONS)
        if self.tied and self.positions == "concatenated":
            raise ValueError("tied weights need an embedding of the model's size: add positions")
        check_share(self, "dropout", "embedding_dropout")
        if self.kv_heads < 1 or self.n_heads % self.kv_heads:
            raise ValueError(
                f"n_kv_heads {self.n_kv_heads} does not divide n_heads {self.n_heads}: "
                "use a divisor of it"
            )

    @property
    def variant(self) -> tuple[str, str | None]:
        """The mechanism, and what charts call its options and kernel."""
        return self.attention, variant_label(self.options, self.kernel)

    @property
    def head_dim(self) -> int:
        return self.d_model // self.n_heads

    @property
    def kv_heads(self) -> int:
        return self.n_heads if self.n_kv_heads is None else self.n_kv_heads


def _share(blocks: Iterable["Block"]) -> None:
    """Let layers have in common what their mechanisms share."""
    found: dict[tuple, Attention] = {}
    for block in blocks:
        for layer in filter(None, (block.self_attention, block.cross_attention)):
            kind = type(layer.attention), layer.attention.options
            layer.attention.share_with(found.setdefault(kind, layer.attention))


def _head(config: TransformerConfig, embedding: Embedding) -> nn.Linear:
    """The output layer, whose weights may be those of the embedding."""
    head = nn.Linear(config.d_model, embedding.tokens.num_embeddings)
    if config.tied:
        nn.init.normal_(embedding.tokens.weight, std=config.d_model**-0.5)
        head.weight = embedding.tokens.weight
    return head


def _embedding(config: TransformerConfig, vocab_size: int, max_len: int) -> Embedding:
    return Embedding(
        config.d_model,
        vocab_size,
        max_len,
        positions=config.positions,
        dropout=config.dropout if config.embedding_dropout is None else config.embedding_dropout,
    )


class MultiHeadAttention(nn.Module):
    """Projections around an attention mechanism: queries from x, keys and values from a context."""

    def __init__(self, config: TransformerConfig, max_len: int, attention: str | None = None):
        super().__init__()
        name = attention or config.attention
        own = name == config.attention
        self.n_heads, self.n_kv_heads = config.n_heads, config.kv_heads
        self.head_dim = config.head_dim
        of_keys = self.n_kv_heads * self.head_dim
        self.sizes = (config.d_model, of_keys, of_keys)
        self.to_qkv = nn.Linear(config.d_model, sum(self.sizes))
        self.attention = ATTENTION[name].for_model(
            n_heads=self.n_kv_heads,
            head_dim=config.head_dim,
            max_len=max_len,
            options=config.options if own else None,
            kernel=config.kernel if own else None,
        )
        self.out = nn.Linear(config.d_model, config.d_model)

    def forward(
        self,
        x: Tensor,
        *,
        causal: bool,
        padding_mask: Tensor | None = None,
        packing: Packing | None = None,
    ) -> Tensor:
        """Self-attention, (B, N, E) -> (B, N, E)."""
        q, k, v = self.queries_keys_values(x)
        if packing is not None:
            attend = partial(self.attention, causal=causal)
            return self.merge(packing.attend(attend, q, k, v, causal=causal))
        return self.merge(self.attention(q, k, v, causal=causal, **_masking(padding_mask)))

    def cross(self, x: Tensor, context: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """Attention of x (B, N, E) to a context (B, N', E), but for its padding (B, N')."""
        e = x.shape[-1]
        q = self._heads(linear(x, self.to_qkv.weight[:e], self.to_qkv.bias[:e]))
        k, v = self.keys_values(context)
        return self.merge(self.attention(q, k, v, causal=False, **_masking(padding_mask)))

    def queries_keys_values(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, N, E) -> (B, H, N, D), and twice (B, G, N, D)."""
        return self.by_head(self.to_qkv(x))

    def by_head(self, qkv: Tensor) -> tuple[Tensor, ...]:
        """What `to_qkv` puts out, (B, N, (H + 2 G) D), as queries, keys and values by head."""
        return tuple(self._heads(part) for part in qkv.split(self.sizes, dim=-1))

    def keys_values(self, context: Tensor) -> tuple[Tensor, ...]:
        """The keys and values of a context (B, N', E), both (B, G, N', D)."""
        e = context.shape[-1]
        kv = linear(context, self.to_qkv.weight[e:], self.to_qkv.bias[e:])
        return tuple(self._heads(part) for part in kv.split(self.sizes[1:], dim=-1))

    def init_state(self, batch_size: int, max_len: int | None = None, **options) -> Any:
        """The state of the mechanism for this model; options such as another device."""
        weight = self.to_qkv.weight
        return self.attention.init_state(
            batch_size,
            self.n_kv_heads,
            self.head_dim,
            max_len=max_len,
            **{"dtype": weight.dtype, "device": weight.device} | options,
        )

    def step(self, state: Any, x: Tensor) -> tuple[Tensor, Any]:
        """Causal self-attention of one position, (B, 1, E) -> (B, 1, E)."""
        return self._one(self.attention.step, state, x)

    def step_(self, state: Any, x: Tensor) -> tuple[Tensor, Any]:
        """`step` that may reuse the memory of the given state."""
        return self._one(self.attention.step_, state, x)

    def prefill(
        self, state: Any, x: Tensor, padding_mask: Tensor | None = None
    ) -> tuple[Tensor, Any]:
        """Causal self-attention of the next N positions, (B, N, E) -> (B, N, E)."""
        q, k, v = self.queries_keys_values(x)
        y, state = self.attention.prefill(state, q, k, v, **_masking(padding_mask))
        return self.merge(y), state

    def _one(self, step: Callable, state: Any, x: Tensor) -> tuple[Tensor, Any]:
        q, k, v = (x[:, :, 0] for x in self.queries_keys_values(x))
        y, state = step(state, q, k, v)
        return self.merge(y.unsqueeze(2)), state

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (x.shape[-1] // self.head_dim, self.head_dim)).transpose(1, 2)

    def merge(self, y: Tensor) -> Tensor:
        """(B, H, N, D) -> (B, N, E), projected."""
        return self.out(y.transpose(1, 2).flatten(2))


def _masking(padding_mask: Tensor | None) -> dict[str, Tensor]:
    return {} if padding_mask is None else {"key_padding_mask": padding_mask}


class Block(nn.Module):
    """Self-attention, attention to an encoder's memory where `cross`, and a feed-forward network,
    each with a residual connection and layer normalisation (Vaswani et al. 2017, section 3.1)."""

    def __init__(self, config: TransformerConfig, max_len: int, *, causal: bool, cross: bool):
        super().__init__()
        e, pre = config.d_model, config.norm == "pre"
        self.causal, self.pre = causal, pre
        of_tokens = (config.decoder_attention if cross else None) or config.attention
        if causal and not ATTENTION[of_tokens].causal:
            remedy = "decoder_attention" if cross else "attention"
            raise ValueError(
                f"{ATTENTION[of_tokens].label} attention cannot be causal, as a decoder's tokens "
                f"need it: use another {remedy}, such as 'softmax'"
            )
        self.self_attention = MultiHeadAttention(config, max_len, of_tokens)
        to_memory = config.cross_attention or config.attention
        self.cross_attention = MultiHeadAttention(config, max_len, to_memory) if cross else None
        self.feedforward = nn.Sequential(
            nn.Linear(e, config.d_feedforward),
            nn.ReLU(),
            Dropout(config.dropout),
            nn.Linear(config.d_feedforward, e),
        )
        self.norms = nn.ModuleList(nn.LayerNorm(e) for _ in range(3 if cross else 2))
        self.dropout = Dropout(config.dropout)

    def forward(
        self,
        x: Tensor,
        memory: Tensor | None = None,
        memory_mask: Tensor | None = None,
        **options: Any,
    ) -> Tensor:
        """(B, N, E), memory (B, N', E) with its padding (B, N') -> (B, N, E); options such as a
        mask of x are those of `MultiHeadAttention`."""
        x = self._residual(0, x, partial(self.self_attention, causal=self.causal, **options))
        return self._rest(x, memory, memory_mask)

    def advance(
        self,
        attend: Callable[[Any, Tensor], tuple[Tensor, Any]],
        state: Any,
        x: Tensor,
        memory: Tensor | None = None,
        memory_mask: Tensor | None = None,
    ) -> tuple[Tensor, Any]:
        """`forward` of the next positions, (B, N, E) -> (B, N, E) and the state after them, where
        `attend` is a way of `self_attention` to take them."""

        def attended(h: Tensor) -> Tensor:
            nonlocal state
            y, state = attend(state, h)
            return y

        x = self._residual(0, x, attended)
        return self._rest(x, memory, memory_mask), state

    def _rest(self, x: Tensor, memory: Tensor | None, memory_mask: Tensor | None) -> Tensor:
        if self.cross_attention is not None:
            cross = partial(self.cross_attention.cross, context=memory, padding_mask=memory_mask)
            x = self._residual(1, x, cross)
        return self._residual(-1, x, self.feedforward)

    def _residual(self, i: int, x: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        if self.pre:
            return x + self.dropout(sublayer(self.norms[i](x)))
        return self.norms[i](x + self.dropout(sublayer(x)))


class ModelState(NamedTuple):
    """What a model has seen; a value, as the states of its blocks are.

    Attributes:
        blocks: the states of its blocks.
        position: of the next token; (B,) where rows had padding.
    """

    blocks: tuple[Any, ...]
    position: int | Tensor

    def carried(self, memory_len: int | None = None) -> "ModelState":
        """The state that the next segment of a text begins with: without gradients, and of a cache
        of keys and values the last `memory_len` alone (Dai et al. 2019, *Transformer-XL*, section
        3.2, who keep hidden states instead and compute keys and values of them anew)."""
        blocks = (
            state_with(state, (x.detach() if isinstance(x, Tensor) else x for x in state))
            for state in self.blocks
        )
        if memory_len is not None:
            blocks = (cache.last(memory_len) for cache in blocks)
        return self._replace(blocks=tuple(blocks))

    @property
    def nbytes(self) -> int:
        """Of all its tensors."""
        return sum(x.nbytes for state in self.blocks for x in state if isinstance(x, Tensor))


class _Decoding(nn.Module):
    """What models share that predict the next token: an embedding, blocks that are causal, a last
    norm and a head."""

    def decoding_blocks(self) -> nn.ModuleList:
        raise NotImplementedError

    def init_state(self, batch_size: int, max_len: int | None = None) -> ModelState:
        """The state before the first token; what grows with the length has room for `max_len`
        positions from the start."""
        blocks = self.decoding_blocks()
        return ModelState(
            tuple(b.self_attention.init_state(batch_size, max_len) for b in blocks), 0
        )

    def _embedded(
        self, tokens: Tensor, padding_mask: Tensor | None, position: int | Tensor = 0
    ) -> Tensor:
        """(B, N) -> (B, N, E), the first at a position that may be (B,)."""
        if padding_mask is not None:
            check_padding(padding_mask, tokens)
            positions = positions_without(padding_mask, position)
            return embed_padded(partial(self.embedding, positions=positions), tokens, padding_mask)
        if isinstance(position, Tensor):
            along = torch.arange(tokens.shape[1], device=tokens.device)
            return self.embedding(tokens, positions=position.unsqueeze(-1) + along)
        return self.embedding(tokens, first=position) if position else self.embedding(tokens)

    def _logits(self, x: Tensor) -> Tensor:
        return self.head(self.norm(x))

    def _step(
        self, state: ModelState, token: Tensor, position: int | Tensor | None, way: str, *memory
    ) -> tuple[Tensor, ModelState]:
        position = state.position if position is None else position
        if isinstance(position, Tensor) and position.dim() == 0:
            position = position.expand(len(token))
        x = self._embedded(token[:, None], None, position)
        x, blocks = self._advance(state.blocks, x, way, *memory)
        return self._logits(x)[:, 0], ModelState(blocks, position + 1)

    def _prefill(
        self, state: ModelState, tokens: Tensor, padding_mask: Tensor | None, *memory
    ) -> tuple[Tensor, ModelState]:
        x = self._embedded(tokens, padding_mask, state.position)
        x, blocks = self._advance(state.blocks, x, "prefill", *memory, padding_mask=padding_mask)
        n = tokens.shape[1] if padding_mask is None else (~padding_mask).sum(1)
        return self._logits(x), ModelState(blocks, state.position + n)

    def _advance(
        self, states: Iterable[Any], x: Tensor, way: str, *memory, **options
    ) -> tuple[Tensor, tuple[Any, ...]]:
        after = []
        for block, state in zip(self.decoding_blocks(), states, strict=True):
            attend = partial(getattr(block.self_attention, way), **options)
            x, state = block.advance(attend, state, x, *memory)
            after.append(state)
        return x, tuple(after)


class CausalTransformer(_Decoding):
    """A decoder-only language model: tokens (B, N) -> logits (B, N, V)."""

    def __init__(self, config: TransformerConfig, *, vocab_size: int, max_len: int):
        super().__init__()
        self.config = config
        self.embedding = _embedding(config, vocab_size, max_len)
        self.blocks = nn.ModuleList(
            Block(config, max_len, causal=True, cross=False) for _ in range(config.n_layers)
        )
        self.norm = nn.LayerNorm(config.d_model)
        self.head = _head(config, self.embedding)
        _share(self.blocks)

    def forward(
        self,
        tokens: Tensor,
        padding_mask: Tensor | None = None,
        *,
        cu_seqlens: Tensor | None = None,
    ) -> Tensor:
        """Tokens (B, N) -> logits (B, N, V).

        Args:
            padding_mask: (B, N) bool, True at padding, on either side.
            cu_seqlens: (S + 1,), boundaries of S sequences that lie one after the other in tokens
                (1, N), each to be taken alone; see `replib.packing.Packing`.

        Raises:
            ValueError: the sequence is longer than the model, a mask or boundaries are not those of
                the tokens, or both are given.
        """
        packing = None
        if cu_seqlens is None:
            x = self._embedded(tokens, padding_mask)
        elif padding_mask is None:
            packing = Packing(cu_seqlens, tokens.shape, tokens.device)
            x = self.embedding(tokens, positions=packing.positions)
        else:
            raise ValueError("packed sequences have no padding: give a mask or cu_seqlens")
        for block in self.blocks:
            x = block(x, padding_mask=padding_mask, packing=packing)
        return self._logits(x)

    def decoding_blocks(self) -> nn.ModuleList:
        return self.blocks

    def step(
        self, state: ModelState, token: Tensor, position: int | Tensor | None = None
    ) -> tuple[Tensor, ModelState]:
        """One token (B,) -> logits (B, V) for the next, and the next state; the given one stays as
        it was, and gradients flow through it.

        Args:
            position: of the token, a number or (B,), where it is not that of the state.
        """
        return self._step(state, token, position, "step")

    @torch.no_grad()
    def step_(
        self, state: ModelState, token: Tensor, position: int | Tensor | None = None
    ) -> tuple[Tensor, ModelState]:
        """`step` without gradients, which may reuse the memory of the given state: that must not be
        used again."""
        return self._step(state, token, position, "step_")

    def prefill(
        self, state: ModelState, tokens: Tensor, padding_mask: Tensor | None = None
    ) -> tuple[Tensor, ModelState]:
        """`step` for tokens (B, N) at once -> logits (B, N, V) and the state after them.

        Args:
            padding_mask: (B, N) bool, True at padding, of which nothing enters the state.

        Example:
            >>> logits, state = model.prefill(model.init_state(len(prompt)), prompt)
            >>> logits, state = model.step(state, logits[:, -1].argmax(-1))
        """
        return self._prefill(state, tokens, padding_mask)


class PixelTransformer(CausalTransformer):
    """A decoder-only model of levels: tokens (B, N) -> mixtures of logistics (B, N, 3K)."""

    def __init__(self, config: TransformerConfig, *, vocab_size: int, max_len: int, n_outputs: int):
        super().__init__(config, vocab_size=vocab_size, max_len=max_len)
        self.head = nn.Linear(config.d_model, n_outputs)


class EncoderDecoder(_Decoding):
    """An encoder and a causal decoder that attends to it: source (B, N'), tokens (B, N) ->
    logits (B, N, V). The embedding is shared."""

    def __init__(self, config: TransformerConfig, *, vocab_size: int, max_len: int):
        super().__init__()
        self.config = config
        self.embedding = _embedding(config, vocab_size, max_len)
        self.encoder = nn.ModuleList(
            Block(config, max_len, causal=False, cross=False) for _ in range(config.n_layers)
        )
        self.decoder = nn.ModuleList(
            Block(config, max_len, causal=True, cross=True) for _ in range(config.n_layers)
        )
        self.encoder_norm = nn.LayerNorm(config.d_model)
        self.norm = nn.LayerNorm(config.d_model)
        self.head = _head(config, self.embedding)
        _share([*self.encoder, *self.decoder])

    def forward(
        self,
        source: Tensor,
        tokens: Tensor,
        source_padding_mask: Tensor | None = None,
        padding_mask: Tensor | None = None,
    ) -> Tensor:
        """Source (B, N'), tokens (B, N) -> logits (B, N, V).

        Args:
            source_padding_mask: (B, N') bool, and padding_mask: (B, N) bool, True at padding.

        Raises:
            ValueError: a sequence is longer than the model, or a mask is not that of its tokens.
        """
        memory = self.encode(source, source_padding_mask)
        x = self._embedded(tokens, padding_mask)
        for block in self.decoder:
            x = block(x, memory, source_padding_mask, padding_mask=padding_mask)
        return self._logits(x)

    def encode(self, source: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """The memory (B, N', E) that the decoder attends to."""
        x = self._embedded(source, padding_mask)
        # A block that stands for another may take x alone.
        options = {} if padding_mask is None else {"padding_mask": padding_mask}
        for block in self.encoder:
            x = block(x, **options)
        return self.encoder_norm(x)

    def decoding_blocks(self) -> nn.ModuleList:
        return self.decoder

    def step(
        self,
        state: ModelState,
        token: Tensor,
        position: int | Tensor | None,
        memory: Tensor,
        source_padding_mask: Tensor | None = None,
    ) -> tuple[Tensor, ModelState]:
        """One decoder token (B,) -> logits (B, V) for the next, and the next state, as in
        `CausalTransformer.step`."""
        return self._step(state, token, position, "step", memory, source_padding_mask)

    def prefill(
        self,
        state: ModelState,
        tokens: Tensor,
        memory: Tensor,
        source_padding_mask: Tensor | None = None,
        padding_mask: Tensor | None = None,
    ) -> tuple[Tensor, ModelState]:
        """`step` for decoder tokens (B, N) at once, as in `CausalTransformer.prefill`."""
        return self._prefill(state, tokens, padding_mask, memory, source_padding_mask)
