"""What a layer and a whole model cost around attention that is not causal.

B batch, N sequence length, E model size, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from replib import models
from replib.attention import ATTENTION
from replib.lab.run import register
from replib.lab.timing import CostConfig
from replib.models import Block, EncoderDecoder, TransformerConfig

PARTS = ("layer", "encoder", "translator")


@dataclass(frozen=True, kw_only=True)
class StackConfig(CostConfig):
    """One point: a layer of an encoder, an encoder with its embedding and output layer, or an
    encoder-decoder, of the Linformer work's sizes (crybot/linformer: 6 + 6 layers of 512 with 8
    heads, 2048 and 50,272 tokens), on random tokens without padding.

    The decoder's attention to its own tokens is the mechanism's where that can be causal, else
    softmax, as in that work.

    Deviation: that work adds a softmax over the vocabulary in float32, and has no biases.
    """

    kind: ClassVar[str] = "stack"

    causal: bool = False
    head_dim: int = 64
    part: str = "layer"
    n_layers: int = 6
    d_feedforward: int = 2048
    vocab_size: int = 50_272

    def __post_init__(self):
        super().__post_init__()
        if self.part not in PARTS:
            raise ValueError(f"part {self.part!r}: use {', '.join(PARTS)}")
        if self.causal:
            raise ValueError("an encoder is not causal: use causal=False")

    @property
    def versions(self) -> dict[str, int]:
        found = super().versions | {"models": models.VERSION}
        if self.part == "translator" and not ATTENTION[self.attention].causal:
            found["softmax"] = ATTENTION["softmax"].VERSION
        return found

    @property
    def model(self) -> TransformerConfig:
        """The sizes of the model that it is, or is a layer of."""
        alone = ATTENTION[self.attention].causal
        return TransformerConfig(
            attention=self.attention,
            options=self.options,
            kernel=self.kernel,
            n_layers=self.n_layers,
            n_heads=self.n_heads,
            d_model=self.n_heads * self.head_dim,
            d_feedforward=self.d_feedforward,
            dropout=0.0,
            positions="added",
            decoder_attention=None if alone else "softmax",
        )

    def work_on(self, device: torch.device, seed: int) -> Callable[[], object]:
        """What is timed: a call, or one with the gradients of all weights."""
        generator = torch.Generator(device=device).manual_seed(seed)
        shape = self.batch_size, self.seq_len
        with torch.device(device):
            if self.part == "layer":
                module: nn.Module = Block(self.model, self.seq_len, causal=False, cross=False)
            elif self.part == "encoder":
                module = _Encoder(self.model, self.vocab_size, self.seq_len)
            else:
                module = EncoderDecoder(
                    self.model, vocab_size=self.vocab_size, max_len=self.seq_len
                )
        module.eval()
        if self.part == "layer":
            inputs = [torch.randn(*shape, self.model.d_model, generator=generator, device=device)]
        else:
            sides = 2 if self.part == "translator" else 1
            inputs = [
                torch.randint(self.vocab_size, shape, generator=generator, device=device)
            ] * sides
        weights = list(module.parameters())

        def forward() -> Tensor:
            with torch.no_grad():
                return module(*inputs)

        def forward_backward() -> tuple[Tensor | None, ...]:
            return torch.autograd.grad(module(*inputs).sum(), weights, allow_unused=True)

        return forward if self.work == "forward" else forward_backward


class _Encoder(nn.Module):
    """Tokens (B, N) -> logits (B, N, V) that see every token."""

    def __init__(self, config: TransformerConfig, vocab_size: int, max_len: int):
        super().__init__()
        self.encoder = EncoderDecoder(config, vocab_size=vocab_size, max_len=max_len)
        self.encoder.decoder = nn.ModuleList()

    def forward(self, tokens: Tensor) -> Tensor:
        return self.encoder.head(self.encoder.encode(tokens))


register(StackConfig)


@dataclass(frozen=True)
class Operations:
    """Multiplications of a forward pass by what needs them, a token of an encoder's.

    Attributes:
        attention: between tokens, or tokens and slots, with the projections of Linformer.
        projections: q, k, v and what is put out.
    """

    attention: float
    projections: float
    feedforward: float
    output: float

    @property
    def total(self) -> float:
        return self.attention + self.projections + self.feedforward + self.output


def operations(
    attention: str,
    seq_len: int,
    *,
    k: int = 64,
    n_layers: int = 6,
    n_heads: int = 8,
    head_dim: int = 64,
    d_feedforward: int = 2048,
    vocab_size: int = 50_272,
) -> Operations:
    """Of a token of an encoder with an output layer; `attention` is softmax, linear or linformer.

    Softmax: 2·N·E for the scores and the sum of values. Linear: the state is written and read,
    2·E·D. Linformer: E and F have K columns for each token, 2·K·E, and there are K slots, 2·K·E.

    Raises:
        ValueError: another mechanism.
    """
    e = n_heads * head_dim
    each = {"softmax": 2 * seq_len * e, "linear": 2 * e * head_dim, "linformer": 4 * k * e}
    if attention not in each:
        raise ValueError(f"operations of {attention!r}: use {', '.join(each)}")
    return Operations(
        attention=n_layers * each[attention],
        projections=n_layers * 4 * e * e,
        feedforward=n_layers * 2 * e * d_feedforward,
        output=e * vocab_size,
    )


def n_matrices(sharing: str, *, n_modules: int = 12, n_heads: int = 12) -> int:
    """How many matrices E and F a model has (Wang et al. 2020, section 4).

    Raises:
        ValueError: there is no such sharing.
    """
    known = {
        "none": 2 * n_modules * n_heads,
        "headwise": 2 * n_modules,
        "key-value": n_modules,
        "layerwise": 1,
    }
    if sharing not in known:
        raise ValueError(f"sharing {sharing!r}: use {', '.join(known)}")
    return known[sharing]
