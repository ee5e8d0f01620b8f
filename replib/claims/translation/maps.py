"""What a translator attends to, and its translation a token at a time.

N source length, L target length.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from replib.lab.runs.translation import decode
from replib.pages.attention_maps import recorded_inputs, weights
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
