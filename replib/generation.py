"""Token-by-token decoding from a trained model.

B batch, N sequence length. Greedy: each position's most likely token.
"""

import torch
from torch import Tensor

from replib.models import CausalTransformer, EncoderDecoder
from replib.tasks import CausalCopy, Task


@torch.inference_mode()
def continue_greedily(model: CausalTransformer, prompt: Tensor, n_tokens: int) -> Tensor:
    """Continue a prompt (B, N), N >= 1, by n tokens (B, n) through the recurrent form.

    Raises:
        ValueError: the prompt is empty.
    """
    if prompt.shape[1] == 0:
        raise ValueError("the prompt is empty: give at least one token")
    was_training = model.training
    model.eval()
    state, produced = model.init_state(len(prompt)), []
    for position in range(prompt.shape[1] + n_tokens - 1):
        inside = position < prompt.shape[1]
        token = prompt[:, position] if inside else produced[-1]
        logits, state = model.step(state, token, position)
        if position >= prompt.shape[1] - 1:
            produced.append(logits.argmax(-1))
    model.train(was_training)
    return torch.stack(produced, dim=1) if produced else prompt[:, :0]


@torch.inference_mode()
def translate_greedily(
    model: EncoderDecoder, source: Tensor, start: int, end: int, max_len: int
) -> Tensor:
    """Decode from a source (B, N') until every row has ended or `max_len` tokens.

    Returns:
        (B, at most max_len) tokens without the start; rows that ended earlier repeat `end`.
    """
    was_training = model.training
    model.eval()
    memory, state, produced = model.encode(source), model.init_state(len(source)), []
    token = source.new_full((len(source),), start)
    ended = torch.zeros_like(token, dtype=torch.bool)
    for position in range(max_len):
        logits, state = model.step(state, token, position, memory)
        token = logits.argmax(-1).masked_fill(ended, end)
        produced.append(token)
        ended |= token == end
        if ended.all():
            break
    model.train(was_training)
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
        return continue_greedily(model, torch.cat([symbols, separator], dim=1), n)
    edge = symbols.new_ones(len(symbols), 1)
    source = torch.cat([edge * task.start, symbols, edge * task.end], dim=1)
    return translate_greedily(model, source, task.start, task.end, n)
