"""Transformers that take their attention by its registry name.

B batch, N sequence length, E model size (`d_model`), H heads, D = E / H size per head,
V vocabulary. Hidden states are (B, N, E), tokens (B, N), logits (B, N, V).
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from replib.attention import ATTENTION

MAX_LAYERS, MAX_D_MODEL, MAX_HEADS = 64, 8192, 128  # beyond them a size is taken for a slip


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Sizes and choices of a Transformer; the defaults are the paper's causal copy model.

    Attributes:
        attention, implementation: a name of `ATTENTION`, and one of its implementations.
        n_layers: blocks (in the encoder and again in the decoder, where there are both).
        d_model: E, shared among `n_heads` heads.
        d_feedforward: hidden size of the position-wise network.
        norm: "post" (as in the paper) or "pre" normalisation.
        positions: sinusoids "concatenated" to (the original code) or "added" to the embedding.
    """

    attention: str = "linear"
    implementation: str | None = None
    n_layers: int = 4
    n_heads: int = 8
    d_model: int = 256
    d_feedforward: int = 1024
    norm: str = "post"
    dropout: float = 0.1
    positions: str = "concatenated"

    def __post_init__(self):
        if self.attention not in ATTENTION:
            raise ValueError(f"unknown attention {self.attention!r}: use {', '.join(ATTENTION)}")
        ATTENTION[self.attention].resolve(self.implementation)
        limits = (
            ("n_layers", MAX_LAYERS),
            ("n_heads", MAX_HEADS),
            ("d_model", MAX_D_MODEL),
            ("d_feedforward", 4 * MAX_D_MODEL),
        )
        for name, most in limits:
            if not 1 <= getattr(self, name) <= most:
                raise ValueError(f"{name} {getattr(self, name)}: use 1 to {most}")
        if self.d_model % self.n_heads or self.d_model % 2:
            heads = self.n_heads if self.n_heads % 2 == 0 else 2 * self.n_heads
            nearest = max(heads, round(self.d_model / heads) * heads)
            raise ValueError(
                f"d_model {self.d_model} is not an even multiple of n_heads {self.n_heads}: "
                f"use d_model {nearest}, or other n_heads"
            )
        if self.norm not in ("post", "pre"):
            raise ValueError(f"norm {self.norm!r}: use 'post' or 'pre'")
        if self.positions not in ("concatenated", "added"):
            raise ValueError(f"positions {self.positions!r}: use 'concatenated' or 'added'")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout {self.dropout}: use 0 to below 1")

    @property
    def head_dim(self) -> int:
        return self.d_model // self.n_heads


class Dropout(nn.Module):
    """Dropout that draws from its own generator, so that threads cannot disturb a run's seed.

    Deviation: p is rounded to a 256th, because one random byte an element costs half the time
    of one random float; what is kept is scaled by the rounded probability, so the mean is exact.
    """

    def __init__(self, p: float):
        super().__init__()
        self.dropped_of_256 = round(256 * p)
        self.generator: torch.Generator | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.dropped_of_256 == 0:
            return x
        words = torch.empty(-(-x.numel() // 8), dtype=torch.int64, device=x.device)
        words.random_(torch.iinfo(torch.int64).min, None, generator=self.generator)
        bytes_ = words.view(torch.uint8)[: x.numel()].view(x.shape)
        keep = (bytes_ >= self.dropped_of_256).to(x.dtype)
        return x * keep.mul_(256 / (256 - self.dropped_of_256))


def set_dropout_generator(model: nn.Module, generator: torch.Generator) -> None:
    """Let all dropout of a model draw from one generator."""
    for module in model.modules():
        if isinstance(module, Dropout):
            module.generator = generator


class Embedding(nn.Module):
    """Token embedding with sinusoidal positions (Vaswani et al. 2017, section 3.5)."""

    def __init__(self, config: TransformerConfig, vocab_size: int, max_len: int):
        super().__init__()
        self.concatenated = config.positions == "concatenated"
        size = config.d_model // 2 if self.concatenated else config.d_model
        self.tokens = nn.Embedding(vocab_size, size)
        self.dropout = Dropout(config.dropout)
        self.register_buffer("sinusoids", _sinusoids(torch.arange(max_len), size), persistent=False)

    def forward(self, tokens: Tensor, first: int = 0) -> Tensor:
        """(B, N) -> (B, N, E), where the first token stands at position `first`."""
        last = first + tokens.shape[1]
        if last > len(self.sinusoids):
            raise ValueError(
                f"position {last - 1} is beyond the model's {len(self.sinusoids)} positions: "
                "build it for a longer sequence"
            )
        return self.dropout(self._at(tokens, self.sinusoids[first:last]))

    def step(self, token: Tensor, position: int | Tensor) -> Tensor:
        """(B,) -> (B, E) at one position, which may be beyond those of `forward` or a tensor ();
        without dropout."""
        if isinstance(position, int) and position < len(self.sinusoids):
            return self._at(token, self.sinusoids[position])
        position = torch.as_tensor(position, device=token.device)
        return self._at(token, _sinusoids(position, self.sinusoids.shape[1]))

    def _at(self, tokens: Tensor, positions: Tensor) -> Tensor:
        x = self.tokens(tokens)
        if self.concatenated:
            return torch.cat([x, positions.expand_as(x).to(x.dtype)], dim=-1)
        return x * math.sqrt(x.shape[-1]) + positions.to(x.dtype)


def _sinusoids(positions: Tensor, size: int) -> Tensor:
    """(...) -> (..., size)."""
    even = torch.arange(0, size, 2, device=positions.device)
    angles = positions[..., None] * torch.exp(even * (-math.log(10000.0) / size))
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)[..., :size]


class MultiHeadAttention(nn.Module):
    """Projections around an attention mechanism: queries from x, keys and values from a context."""

    def __init__(self, config: TransformerConfig, max_len: int):
        super().__init__()
        self.n_heads = config.n_heads
        self.to_qkv = nn.Linear(config.d_model, 3 * config.d_model)
        self.attention = ATTENTION[config.attention].for_model(
            n_heads=config.n_heads,
            head_dim=config.head_dim,
            max_len=max_len,
            implementation=config.implementation,
        )
        self.out = nn.Linear(config.d_model, config.d_model)

    def forward(self, x: Tensor, *, causal: bool) -> Tensor:
        """Self-attention, (B, N, E) -> (B, N, E)."""
        q, k, v = self._split(self.to_qkv(x), 3)
        return self._merge(self.attention(q, k, v, causal=causal))

    def cross(self, x: Tensor, context: Tensor) -> Tensor:
        """Attention of x (B, N, E) to a context (B, N', E)."""
        e = x.shape[-1]
        (q,) = self._split(linear(x, self.to_qkv.weight[:e], self.to_qkv.bias[:e]), 1)
        return self._merge(self.attention(q, *self.keys_values(context), causal=False))

    def keys_values(self, context: Tensor) -> tuple[Tensor, ...]:
        """The keys and values of a context (B, N', E), both (B, H, N', D)."""
        e = context.shape[-1]
        return self._split(linear(context, self.to_qkv.weight[e:], self.to_qkv.bias[e:]), 2)

    def init_state(self, batch_size: int, max_len: int | None = None) -> Any:
        weight = self.to_qkv.weight
        return self.attention.init_state(
            batch_size,
            self.n_heads,
            weight.shape[1] // self.n_heads,
            dtype=weight.dtype,
            device=weight.device,
            max_len=max_len,
        )

    def step(self, state: Any, x: Tensor) -> tuple[Tensor, Any]:
        """Causal self-attention of one position, (B, 1, E) -> (B, 1, E)."""
        q, k, v = self._split(self.to_qkv(x), 3)
        y, state = self.attention.step(state, q[:, :, 0], k[:, :, 0], v[:, :, 0])
        return self._merge(y.unsqueeze(2)), state

    def _split(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        x = x.unflatten(-1, (parts, self.n_heads, -1))  # (B, N, parts, H, D)
        return x.permute(2, 0, 3, 1, 4).unbind(0)  # parts of (B, H, N, D)

    def _merge(self, y: Tensor) -> Tensor:
        return self.out(y.transpose(1, 2).flatten(2))  # (B, H, N, D) -> (B, N, E)


class Block(nn.Module):
    """Self-attention, attention to an encoder's memory where `cross`, and a feed-forward network,
    each with a residual connection and layer normalisation (Vaswani et al. 2017, section 3.1)."""

    def __init__(self, config: TransformerConfig, max_len: int, *, causal: bool, cross: bool):
        super().__init__()
        e, pre = config.d_model, config.norm == "pre"
        self.causal, self.pre = causal, pre
        self.self_attention = MultiHeadAttention(config, max_len)
        self.cross_attention = MultiHeadAttention(config, max_len) if cross else None
        self.feedforward = nn.Sequential(
            nn.Linear(e, config.d_feedforward),
            nn.ReLU(),
            Dropout(config.dropout),
            nn.Linear(config.d_feedforward, e),
        )
        self.norms = nn.ModuleList(nn.LayerNorm(e) for _ in range(3 if cross else 2))
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        """(B, N, E), memory (B, N', E) -> (B, N, E)."""
        x = self._residual(0, x, lambda h: self.self_attention(h, causal=self.causal))
        return self._rest(x, memory)

    def step(self, state: Any, x: Tensor, memory: Tensor | None = None) -> tuple[Tensor, Any]:
        """`forward` of one position, (B, 1, E) -> (B, 1, E)."""

        def attend(h):
            nonlocal state
            y, state = self.self_attention.step(state, h)
            return y

        x = self._residual(0, x, attend)
        return self._rest(x, memory), state

    def _rest(self, x: Tensor, memory: Tensor | None) -> Tensor:
        if self.cross_attention is not None:
            x = self._residual(1, x, lambda h: self.cross_attention.cross(h, memory))
        return self._residual(-1, x, self.feedforward)

    def _residual(self, i: int, x: Tensor, sublayer) -> Tensor:
        if self.pre:
            return x + self.dropout(sublayer(self.norms[i](x)))
        return self.norms[i](x + self.dropout(sublayer(x)))


class CausalTransformer(nn.Module):
    """A decoder-only language model: tokens (B, N) -> logits (B, N, V)."""

    def __init__(self, config: TransformerConfig, *, vocab_size: int, max_len: int):
        super().__init__()
        self.config = config
        self.embedding = Embedding(config, vocab_size, max_len)
        self.blocks = nn.ModuleList(
            Block(config, max_len, causal=True, cross=False) for _ in range(config.n_layers)
        )
        self.norm = nn.LayerNorm(config.d_model)
        self.head = nn.Linear(config.d_model, vocab_size)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))

    def init_state(self, batch_size: int, max_len: int | None = None) -> list[Any]:
        """The states of all blocks before the first token; one that grows with the length has
        room for `max_len` positions from the start."""
        return [block.self_attention.init_state(batch_size, max_len) for block in self.blocks]

    def step(self, states: list[Any], token: Tensor, position: int) -> tuple[Tensor, list[Any]]:
        """One token (B,) at a position -> logits (B, V) for the next, and the next states."""
        x = self.embedding(token[:, None], first=position)
        states = list(states)
        for i, block in enumerate(self.blocks):
            x, states[i] = block.step(states[i], x)
        return self.head(self.norm(x))[:, 0], states


class EncoderDecoder(nn.Module):
    """An encoder and a causal decoder that attends to it: source (B, N'), tokens (B, N) ->
    logits (B, N, V). The embedding is shared."""

    def __init__(self, config: TransformerConfig, *, vocab_size: int, max_len: int):
        super().__init__()
        self.config = config
        self.embedding = Embedding(config, vocab_size, max_len)
        self.encoder = nn.ModuleList(
            Block(config, max_len, causal=False, cross=False) for _ in range(config.n_layers)
        )
        self.decoder = nn.ModuleList(
            Block(config, max_len, causal=True, cross=True) for _ in range(config.n_layers)
        )
        self.encoder_norm = nn.LayerNorm(config.d_model)
        self.norm = nn.LayerNorm(config.d_model)
        self.head = nn.Linear(config.d_model, vocab_size)

    def forward(self, source: Tensor, tokens: Tensor) -> Tensor:
        memory = self.encode(source)
        x = self.embedding(tokens)
        for block in self.decoder:
            x = block(x, memory)
        return self.head(self.norm(x))

    def encode(self, source: Tensor) -> Tensor:
        """The memory (B, N', E) that the decoder attends to."""
        x = self.embedding(source)
        for block in self.encoder:
            x = block(x)
        return self.encoder_norm(x)

    def init_state(self, batch_size: int, max_len: int | None = None) -> list[Any]:
        """The states of the decoder's blocks before the first token, with room for `max_len`."""
        return [block.self_attention.init_state(batch_size, max_len) for block in self.decoder]

    def step(
        self, states: list[Any], token: Tensor, position: int, memory: Tensor
    ) -> tuple[Tensor, list[Any]]:
        """One decoder token (B,) at a position -> logits (B, V) for the next, and the states."""
        x = self.embedding(token[:, None], first=position)
        states = list(states)
        for i, block in enumerate(self.decoder):
            x, states[i] = block.step(states[i], x, memory)
        return self.head(self.norm(x))[:, 0], states
