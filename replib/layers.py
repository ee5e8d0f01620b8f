"""Layers that are no attention: dropout, and an embedding of tokens and their positions.

B batch, N sequence length, E model size. Padding is where a mask (B, N) is True: its tokens are not
looked at, and positions count the others.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

POSITIONS = ("concatenated", "added", "learned", "none", "batch row")


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
        if self.generator is not None and torch._C._current_graph_task_id() != -1:
            raise RuntimeError(
                "a checkpointed forward pass is computed again, and a generator of its own would "
                "draw other dropout: use set_dropout_generator(model, None)"
            )
        n, least = -(-x.numel() // 8), torch.iinfo(torch.int64).min
        if self.generator is None and torch.compiler.is_compiling():  # which knows no random_
            words = torch.randint(least, -(least + 1), (n,), dtype=torch.int64, device=x.device)
        else:
            words = torch.empty(n, dtype=torch.int64, device=x.device)
            words.random_(least, None, generator=self.generator)
        bytes_ = words.view(torch.uint8)[: x.numel()].view(x.shape)
        keep = (bytes_ >= self.dropped_of_256).to(x.dtype)
        return x * keep.mul_(256 / (256 - self.dropped_of_256))


def set_dropout_generator(model: nn.Module, generator: torch.Generator | None) -> None:
    """Let all dropout of a model draw from one generator; None is torch's own."""
    for module in model.modules():
        if isinstance(module, Dropout):
            module.generator = generator


class Embedding(nn.Module):
    """Token embedding with positions: sinusoids (Vaswani et al. 2017, section 3.5) "concatenated"
    to it or "added", "learned" vectors that are added, or "none". With "batch row" every token of
    row b gets the sinusoid of position b, as in code that indexes (B, N, E) by its first size.

    The sinusoids are a buffer that no checkpoint holds: they are computed, on the CPU for a model
    that is built on the meta device, and again when they are moved to another device or dtype (as
    `to_empty` forgets what they were).
    """

    def __init__(
        self, d_model: int, vocab_size: int, max_len: int, *, positions: str, dropout: float
    ):
        super().__init__()
        self.kind = positions
        size = d_model // 2 if positions == "concatenated" else d_model
        self.tokens = nn.Embedding(vocab_size, size)
        self.learned = nn.Embedding(max_len, size) if positions == "learned" else None
        self.dropout = Dropout(dropout)
        device = torch.get_default_device()
        device = torch.device("cpu") if device.type == "meta" else device
        sinusoids = _sinusoids(torch.arange(max_len, device=device), size)
        self.register_buffer("sinusoids", sinusoids, persistent=False)

    def _apply(self, fn, recurse=True):
        before = self._buffers.get("sinusoids")
        super()._apply(fn, recurse)
        now = self._buffers.get("sinusoids")
        if now is not before and not now.is_meta:
            positions = torch.arange(len(now), device="cpu")
            self._buffers["sinusoids"] = _sinusoids(positions, now.shape[1]).to(now)
        return self

    def forward(self, tokens: Tensor, first: int = 0, positions: Tensor | None = None) -> Tensor:
        """(B, N) -> (B, N, E), where the first token stands at position `first`, or each at its own
        of (B, N) `positions`.

        Raises:
            ValueError: the model was built for fewer positions.
        """
        if positions is not None:
            if positions.numel() and not torch.compiler.is_compiling():  # it would be a graph break
                self._check_last(positions.max().item())
            return self.dropout(self._at(tokens, self._codes(tokens, positions)))
        last = first + tokens.shape[1]
        self._check_last(last - 1)
        return self.dropout(self._at(tokens, self._codes(tokens, slice(first, last))))

    def step(self, token: Tensor, position: int | Tensor, below: int | None = None) -> Tensor:
        """(B,) -> (B, E) at one position, which may be beyond those of `forward`, or a tensor () or
        (B,); without dropout. So too (B, N) -> (B, N, E) at positions (N,) or (B, N).

        Args:
            below: what all positions of a tensor are known to be below: those of the model need not
                be computed.
        """
        if isinstance(position, int):
            below = position + 1
        known = below is not None and below <= len(self.sinusoids)
        if known or self.kind not in ("concatenated", "added"):
            return self._at(token, self._codes(token, position))
        position = torch.as_tensor(position, device=token.device)
        return self._at(token, _sinusoids(position, self.sinusoids.shape[1]))

    @property
    def n_positions(self) -> int | None:
        """Those that `step` can take; None where there is no end."""
        return None if self.learned is None else self.learned.num_embeddings

    def _codes(self, tokens: Tensor, positions: Tensor | slice | int) -> Tensor | None:
        """What stands for positions of tokens (B,) or (B, N); None where nothing does."""
        if self.kind == "none":
            return None
        if self.kind == "batch row":
            rows = torch.arange(len(tokens), device=tokens.device)
            rows = rows.view(-1, *[1] * (tokens.dim() - 1))
            return _sinusoids(rows, self.sinusoids.shape[1])
        return (self.sinusoids if self.learned is None else self.learned.weight)[positions]

    def _check_last(self, last: int) -> None:
        if self.kind not in ("none", "batch row") and last >= len(self.sinusoids):
            raise ValueError(
                f"position {last} is beyond the model's {len(self.sinusoids)} positions: "
                "build it for a longer sequence"
            )

    def _at(self, tokens: Tensor, codes: Tensor | None) -> Tensor:
        x = self.tokens(tokens)
        if self.kind == "concatenated":
            return torch.cat([x, codes.expand_as(x).to(x.dtype)], dim=-1)
        x = x * math.sqrt(x.shape[-1])
        return x if codes is None else x + codes.to(x.dtype)


def embed_padded(embed: Callable[..., Tensor], tokens: Tensor, padding_mask: Tensor) -> Tensor:
    """What `embed` makes of tokens (B, N), (B, N, E), and 0 at padding, whose tokens and embedding
    are not looked at."""
    x = embed(tokens.masked_fill(padding_mask, 0))
    return x.masked_fill(padding_mask.unsqueeze(-1), 0)


def positions_without(padding_mask: Tensor, first: int | Tensor = 0) -> Tensor:
    """The position of each token (B, N) among those that are not padding, from `first` on, a number
    or (B,); at padding that of the token before, and 0 where there is none."""
    first = first.unsqueeze(-1) if isinstance(first, Tensor) else first
    return (first + (~padding_mask).cumsum(1) - 1).clamp(min=0)


def check_padding(padding_mask: Tensor, tokens: Tensor) -> None:
    """
    Raises:
        ValueError: the mask is not one of the tokens.
    """
    if padding_mask.dtype != torch.bool or padding_mask.shape != tokens.shape:
        raise ValueError(
            f"the padding mask is {padding_mask.dtype} {tuple(padding_mask.shape)}: use bool "
            f"{tuple(tokens.shape)}, True where a token is padding"
        )


def _sinusoids(positions: Tensor, size: int) -> Tensor:
    """(...) -> (..., size)."""
    even = torch.arange(0, size, 2, device=positions.device)
    angles = positions[..., None] * torch.exp(even * (-math.log(10000.0) / size))
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)[..., :size]
