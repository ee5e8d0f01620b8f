"""Training of language models: a state may be carried from segment to segment, and the model of an
ended run is the one that predicted the validation text best.

B batch, L tokens of a segment.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from replib import models
from replib.attention import ATTENTION
from replib.attention.base import state_with
from replib.lstm import LSTMConfig
from replib.models import ModelState, TransformerConfig
from replib.perplexity import score
from replib.tasks import Batch
from replib.tasks.copy import MAX_SEQ_LEN
from replib.tasks.text import Text
from replib.training import VERSION, Metrics, Training, TrainingConfig, _precision

GROWING = ("softmax", "lsh")  # their states have a place for every position


@dataclass(frozen=True, kw_only=True)
class LanguageModelConfig(TrainingConfig):
    """A training of a language model.

    Attributes:
        n_carried: segments that one state goes through before the next begins afresh: 1 carries
            none; 0 carries it to the end of the epoch, and of the text that is scored. Gradients
            stay within a segment. Positions go on from segment to segment.
        memory_len: of softmax attention whose state is carried, how many of the last keys and
            values are, as in Transformer-XL (Dai et al. 2019).
        stride: of the sliding window by which the test is scored beside blocks; None for none.
    """

    kind: ClassVar[str] = "language_model"

    task: Text = field(default_factory=Text)
    model: TransformerConfig | LSTMConfig = field(default_factory=TransformerConfig)
    n_carried: int = 1
    memory_len: int | None = None
    stride: int | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.n_carried < 0 or self.n_carried * self.task.seq_len > MAX_SEQ_LEN:
            most = MAX_SEQ_LEN // self.task.seq_len
            raise ValueError(f"n_carried {self.n_carried}: use 0 (without end) to {most}")
        for name in ("memory_len", "stride"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} {value}: use at least 1, or None")
        if self.memory_len is not None and not (self.carries and self.model.attention == "softmax"):
            raise ValueError(
                "memory_len is of softmax attention whose state is carried: set n_carried, or "
                "leave it out"
            )
        if self.carries and self.stride is not None:
            raise ValueError("a carried state has no sliding window: leave stride out")
        if self.carries:
            self._check_carried()

    def _check_carried(self) -> None:
        name, without_end = self.model.attention, self.n_carried == 0
        if name in ATTENTION and not ATTENTION[name].recurrent:
            raise ValueError(f"{name} attention has no state to carry: use n_carried 1")
        if without_end and name in GROWING and self.memory_len is None:
            raise ValueError(
                f"the state of {name} attention grows without end: set n_carried"
                + ", or memory_len" * (name == "softmax")
            )
        if without_end and getattr(self.model, "positions", "none") not in ("none", "batch row"):
            raise ValueError(
                f"{self.model.positions} positions end, and a state that is carried without end "
                "goes beyond them: use positions 'none', or set n_carried"
            )

    @property
    def carries(self) -> bool:
        """Whether a segment begins with the state of the one before it."""
        return self.n_carried != 1

    @property
    def window(self) -> int | None:
        """Tokens that one state goes through; None without end."""
        return self.n_carried * self.task.seq_len or None

    @property
    def model_sizes(self) -> dict[str, int]:
        return self.task.model_sizes | {"max_len": self.window or self.task.seq_len}

    @property
    def versions(self) -> dict[str, int]:
        if isinstance(self.model, TransformerConfig):
            return super().versions
        of_parts = {"lstm": self.model.VERSION, type(self.task).__name__: self.task.VERSION}
        return {**of_parts, "models": models.VERSION, "training": VERSION}

    def training(self, *, seed: int = 0, device: str | None = None) -> "LanguageModelTraining":
        return LanguageModelTraining(self, seed=seed, device=device)


class LanguageModelTraining(Training):
    """A run of a `LanguageModelConfig`. Where it has ended its model has the weights of the
    evaluation with the lowest loss ("early stopping")."""

    def __init__(self, config: LanguageModelConfig, *, seed: int = 0, device: str | None = None):
        super().__init__(config, seed=seed, device=device)
        self._carried: ModelState | None = None
        """What the next step begins with, unless it begins afresh."""
        self._best: dict[str, Tensor] = {}

    def _outputs(self, batch: Batch) -> Tensor:
        config, (tokens,) = self.config, batch.inputs
        if not config.carries:
            return super()._outputs(batch)
        state, segment = self._carried, config.task.segment_at(self.step, config.batch_size)
        is_first = segment == 0 or (config.n_carried and segment % config.n_carried == 0)
        if is_first or state is None or len(_first_tensor(state)) != len(tokens):
            state = self.model.init_state(len(tokens))
        logits, state = self.model.prefill(state, tokens)
        self._carried = state.carried(config.memory_len)
        return logits

    def evaluate(self) -> tuple[float, float]:
        """Nats a token and accuracy, of the first tokens of the validation text that
        `eval_batches` batches have room for."""
        config = self.config
        n_tokens = config.eval_batches * config.batch_size * config.task.seq_len
        found = self.score(config.task.text.valid.ids[: n_tokens + 1])
        return found.nats.mean().item(), found.right.double().mean().item()

    def score(self, ids: Tensor, **options: Any):
        """`replib.perplexity.score` of a text, in windows of what one state goes through; options
        are those of it."""
        config = self.config
        how = {"window": config.window, "batch_size": config.batch_size}
        if config.carries:
            how |= {"segment": config.task.seq_len, "memory_len": config.memory_len}
        with _precision(config.precision, self.device):
            return score(self.model, ids, **how | options)

    def _measure(self) -> Metrics:
        metrics = super()._measure()
        if metrics.loss <= min(m.loss for m in self.history):
            state = self.model.state_dict()
            self._best = {name: x.clone() for name, x in state.items() if torch.is_tensor(x)}
        if metrics.outcome == "ok":
            self.model.load_state_dict(self._best, strict=False)
        return metrics

    def _restore(self, state: dict[str, Any]) -> None:
        super()._restore(state)
        self._best = {name: x.to(self.device) for name, x in state["best"].items()}
        self._carried = None
        if state["carried"] is not None:
            blocks, position = state["carried"]
            fresh = self.model.init_state(self.config.batch_size)
            fields = ([_moved(x, self.device) for x in block] for block in blocks)
            self._carried = ModelState(
                tuple(state_with(*pair) for pair in zip(fresh.blocks, fields, strict=True)),
                position,
            )

    def _state(self) -> dict[str, Any]:
        carried = self._carried
        if carried is not None:  # as lists, which a checkpoint may hold
            carried = [[list(block) for block in carried.blocks], carried.position]
        return super()._state() | {"best": self._best, "carried": carried}


def _first_tensor(state: ModelState) -> Tensor:
    return next(x for x in state.blocks[0] if isinstance(x, Tensor))


def _moved(x: Any, device: torch.device) -> Any:
    return x.to(device) if isinstance(x, Tensor) else x
