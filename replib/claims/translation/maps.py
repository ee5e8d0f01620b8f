"""What a translator attends to, and its translation a token at a time.

B batch, H heads, N source length, L target length.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from replib.lab.runs.translation import decode
from replib.training import Training


@dataclass(frozen=True)
class Translated:
    """A sentence and what a model made of it.

    Attributes:
        source, target: the text of each token, ends among them.
        cross: how much of each source token (L, N) each target token took, the mean of heads and
            layers; with linear attention and Linformer it may be below 0 or above 1.
        encoder: how much of each source token each took, (N, N), of the last layer.
        confidence: the probability of each target token, (L,).
    """

    text: str
    source: list[str]
    target: list[str]
    cross: Tensor
    encoder: Tensor
    confidence: Tensor


@torch.no_grad()
def translated(training: Training, text: str) -> Translated:
    """What a trained model makes of an English text."""
    task, model = training.config.task, training.model
    was_training = model.training
    model.eval()
    (ids,) = task.encode([text])
    (made,) = decode(training, [ids])
    made = made[: made.index(task.end) + 1] if task.end in made else made
    source, _ = task.source([ids], training.device)
    given = torch.tensor([[task.start, *made[:-1]]], device=training.device)
    with recorded_inputs(model) as inputs:
        logits = model(source, given)
    model.train(was_training)
    of_encoder = [block.self_attention.attention for block in model.encoder]
    of_cross = [block.cross_attention.attention for block in model.decoder]
    maps = [weights(module, *inputs[module]) for module in of_cross]
    target = torch.tensor(made, device=training.device)
    return Translated(
        text=task.decode(made),
        source=[piece or "·" for piece in task.pieces(source[0].tolist())],
        target=task.pieces(made),
        cross=torch.stack(maps).mean((0, 1, 2)).cpu(),
        encoder=weights(of_encoder[-1], *inputs[of_encoder[-1]]).mean((0, 1)).cpu(),
        confidence=logits[0].softmax(-1).gather(1, target[:, None])[:, 0].cpu(),
    )


@contextmanager
def recorded_inputs(model: nn.Module) -> Iterator[dict[nn.Module, tuple[Tensor, ...]]]:
    """The queries and keys that the attention of each layer was given last."""
    found: dict[nn.Module, tuple[Tensor, ...]] = {}

    def keep(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        found[module] = arguments[:2]

    modules = [m.attention for m in model.modules() if hasattr(m, "to_qkv")]
    handles = [module.register_forward_pre_hook(keep) for module in modules]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def weights(attention: nn.Module, q: Tensor, k: Tensor) -> Tensor:
    """How much of each value a query takes, (B, H, L, N): what it reads where value j is the j-th
    unit vector. Any mechanism is linear in its values."""
    n = k.shape[2]
    units = torch.eye(n, dtype=k.dtype, device=k.device).expand(*k.shape[:2], n, n)
    return attention(q, k, units, causal=False)
