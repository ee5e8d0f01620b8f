"""Token-by-token decoding from a trained model.

B batch, N sequence length, E model size, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Protocol

import torch
from torch import Tensor, nn

from replib.decoder import MAX_BATCH, Decoder, check_position, check_size
from replib.models import CausalTransformer, EncoderDecoder
from replib.tasks import CausalCopy, Task

VERSION = 1  # raised when what is generated changes beyond rounding
SPEED = 1  # raised when a decoder becomes faster or slower: its recorded times are then old


class Recompute:
    """A model that begins with the first token again for every new one, and keeps the tokens alone.

    This is the softmax baseline of Katharopoulos et al. 2020, tables 1 and 2. `step`, `prefill`,
    `jump` and `state_bytes` are as in a `Decoder`.

    Raises:
        ValueError: a size is out of range.
    """

    @torch.inference_mode()
    def __init__(self, model: CausalTransformer, batch_size: int, *, max_len: int):
        check_size("batch_size", batch_size, MAX_BATCH)
        check_size("max_len", max_len, len(model.embedding.sinusoids))
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
        check_position(position, self.max_len)
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
