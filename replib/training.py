"""One training loop for every model and task: a generator of metrics that can stop and resume.

Randomness of a run: its parameters come from a generator of the run's seed s, and its data, dropout
and evaluation data from generators of the seeds 3s, 3s + 1 and 3s + 2.
"""

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from replib import checkpoints, models
from replib.attention import ATTENTION
from replib.checks import check_known, check_numbers, check_share
from replib.device import resolve_device
from replib.layers import set_dropout_generator
from replib.models import CausalTransformer, EncoderDecoder, PixelTransformer, TransformerConfig
from replib.tasks import Batch, CausalCopy, SequenceCopy, Task
from replib.tasks.images import Pixels
from replib.tasks.text import Text
from replib.tasks.translation import NumberWords, ParallelText

VERSION = 1  # raised when what a step or an evaluation does changes beyond rounding

MODELS: dict[type, type[nn.Module]] = {
    CausalCopy: CausalTransformer,
    SequenceCopy: EncoderDecoder,
    NumberWords: EncoderDecoder,
    ParallelText: EncoderDecoder,
    Pixels: PixelTransformer,
    Text: CausalTransformer,
}

# Beyond them a value is taken for a slip.
MAX_STEPS, MAX_BATCH, MAX_EVAL_BATCHES = 1_000_000, 65_536, 10_000
# A run that went wrong shows at once; its first steps are slow (allocator, caches) and not timed.
UNTIMED_STEPS = 2
# Parameters are initialised from torch's global generator, which all threads share.
_GLOBAL_GENERATOR_LOCK = threading.Lock()


def check_rate(config: Any) -> None:
    """Raise ValueError where the learning rate of a config is none."""
    if not 0 < config.lr < 10:
        raise ValueError(f"lr {config.lr}: use above 0, below 10")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """A run but for its seed; the defaults are the causal copy experiment of the paper
    (Katharopoulos et al. 2020, section 4.1, and the published code's settings).

    Attributes:
        optimizer: "radam" or "adamw", both with decoupled weight decay.
        schedule: "drop" multiplies the rate by 0.1 after `lr_drop_step` steps; "cosine" warms up
            over `warmup_steps` and decays to 0 at `n_steps`; "inverse_sqrt" warms up to `lr` and
            falls as the root of the step (Vaswani et al. 2017, section 5.3).
        clip: largest gradient norm is 1, of each parameter "tensor" (as in the original code) or
            "global"ly, or of "none".
        precision: "float32"; "tf32" lets CUDA round matrix products to TF32; "bf16" is autocast.
        compile: pass the model through torch.compile.
        eval_every: steps from one evaluation (one yielded `Metrics`) to the next.
        eval_batches: batches in an evaluation, at most: of fresh data, or of images of the test.
        label_smoothing: share of the target's probability that the loss of training spreads over
            all tokens (Szegedy et al. 2016); of tasks with tokens.
    """

    kind: ClassVar[str] = "training"

    task: Task | Pixels | NumberWords | ParallelText | Text = field(default_factory=CausalCopy)
    model: TransformerConfig = field(default_factory=TransformerConfig)
    batch_size: int = 64
    n_steps: int = 10_000
    optimizer: str = "radam"
    lr: float = 1e-3
    weight_decay: float = 0.01
    schedule: str = "drop"
    lr_drop_step: int = 3000
    warmup_steps: int = 0
    clip: str = "tensor"
    precision: str = "float32"
    compile: bool = False
    eval_every: int = 100
    eval_batches: int = 4
    label_smoothing: float = 0.0

    def __post_init__(self):
        most = {"batch_size": MAX_BATCH, "n_steps": MAX_STEPS, "eval_every": MAX_STEPS}
        check_numbers(self, **most, eval_batches=MAX_EVAL_BATCHES)
        check_rate(self)
        check_known(
            self,
            optimizer=("radam", "adamw"),
            schedule=("drop", "cosine", "inverse_sqrt"),
            clip=("tensor", "global", "none"),
            precision=("float32", "tf32", "bf16"),
        )
        check_share(self, "label_smoothing")
        if self.label_smoothing and isinstance(self.task, Pixels):
            raise ValueError("images have no labels to smooth: use label_smoothing 0")

    @property
    def versions(self) -> dict[str, int]:
        """Of each part that computes a run, by its name."""
        of_parts = (self.model.attention, self.model.decoder_attention, self.model.cross_attention)
        return {
            **{name: ATTENTION[name].VERSION for name in of_parts if name},
            type(self.task).__name__: self.task.VERSION,
            "models": models.VERSION,
            "training": VERSION,
        }

    @property
    def experiment(self) -> str:
        """What its rows are stored under, unless they are recorded for another experiment."""
        return self.task.experiment

    def missing_data(self) -> str | None:
        """Why what it is trained on cannot be read, or is less than a batch; None where it will
        do, or is drawn."""
        return self.task.missing_data(self.batch_size)

    @property
    def model_sizes(self) -> dict[str, int]:
        """What its model is built with besides the config of that."""
        return self.task.model_sizes

    @property
    def trained(self) -> "TrainingConfig":
        """What is trained in the end; here it itself."""
        return self

    def training(self, *, seed: int = 0, device: str | None = None) -> "Training":
        """A run of this config from its start."""
        return Training(self, seed=seed, device=device)

    def lr_at(self, step: int) -> float:
        """The learning rate of a step, the first being 0."""
        if self.schedule == "drop":
            return self.lr * (0.1 if step >= self.lr_drop_step else 1.0)
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        if self.schedule == "inverse_sqrt":
            return self.lr * math.sqrt(max(1, self.warmup_steps) / (step + 1))
        done = (step - self.warmup_steps) / max(1, self.n_steps - self.warmup_steps)
        return self.lr * 0.5 * (1 + math.cos(math.pi * done))


def build_model(config: TrainingConfig) -> nn.Module:
    """The model of a run, as torch's global generator draws it: the one of its task, unless the
    config of the model builds one itself."""
    build = getattr(config.model, "build", None) or partial(MODELS[type(config.task)], config.model)
    return build(**config.model_sizes)


class _Undrawn(TorchFunctionMode):
    """Leaves weights as they are: to draw a normal one on "meta" torch imports sympy first."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is nn.init.normal_:
            return (kwargs or {}).get("tensor", args[0] if args else None)
        return function(*args, **(kwargs or {}))


def n_parameters(config: TrainingConfig) -> int:
    """How many parameters the model of a run has, which takes no memory."""
    with torch.device("meta"), _Undrawn():
        return sum(x.numel() for x in build_model(config).parameters())


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """Where a run stands after `step` steps.

    Attributes:
        train_loss: mean loss of the steps since the last metrics, nats a token, with dropout.
        loss, accuracy: on held-out data without dropout; nats a token, share of tokens.
        steps_per_s, seconds_left: of this process, evaluation included.
        outcome: None while it runs, then "ok", "diverged" or "interrupted".
    """

    step: int
    train_loss: float
    loss: float
    accuracy: float
    steps_per_s: float
    seconds_left: float
    outcome: str | None = None


class TrainingLoop(checkpoints.Checkpointed):
    """What trainings have in common: steps from one evaluation to the next, a clock, and their part
    of a checkpoint. One has a `config`, a `model`, an `optimizer`, and a `train_step()`."""

    def __init__(self, config: Any, device: str | None):
        self.config, self.device = config, resolve_device(device)
        self.step = 0
        self.threads = torch.get_num_threads()
        """Of the process as the run began; with others sums round otherwise."""
        self._losses: list[Tensor] = []
        """Of the steps since the last evaluation."""

    @property
    def ended(self) -> bool:
        """Whether there is no step left."""
        return self.step >= self.config.n_steps

    def _stretches(self, stop: Callable[[], bool]) -> Iterator[bool]:
        """Train, yielding True where an evaluation is due, and False, and no more, where `stop()`,
        which is asked before each step, says so."""
        self._first, self._started = self.step, time.perf_counter()
        while not self.ended:
            if stop():
                yield False
                return
            if self.step == self._first + UNTIMED_STEPS:
                self._started = time.perf_counter()
            self._losses.append(self.train_step())
            if self.step % self.config.eval_every == 0 or self.step >= self.config.n_steps:
                yield True

    def _speed(self) -> dict[str, float]:
        """Of this process, evaluation included; NaN before a step was timed."""
        timed = self.step - self._first - UNTIMED_STEPS
        speed = timed / (time.perf_counter() - self._started) if timed > 0 else math.nan
        return {"steps_per_s": speed, "seconds_left": (self.config.n_steps - self.step) / speed}

    def _restore(self, state: dict[str, Any]) -> None:
        checkpoints.restore_optimizer(self.optimizer, state["optimizer"])
        self.step = checkpoints.checked_step(state["step"], self.config.n_steps)
        self.threads = int(state["threads"])

    def _state(self) -> dict[str, Any]:
        return {
            "config": asdict(self.config),
            "step": self.step,
            "threads": self.threads,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }


class Training(TrainingLoop):
    """A run: model, optimiser and generators, advanced by iterating over `metrics()`.

    Example:
        >>> run = Training(TrainingConfig(n_steps=300), seed=0)
        >>> for m in run.metrics():
        ...     print(m.step, m.loss)

    Raises:
        ValueError: the device does not exist.
    """

    def __init__(self, config: TrainingConfig, *, seed: int = 0, device: str | None = None):
        super().__init__(config, device)
        self.seed = seed
        with _GLOBAL_GENERATOR_LOCK, torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = build_model(config)
        self.model.to(self.device)
        self.optimizer = _optimizer(config, self.model)
        # Distinct streams: consecutive seeds of one generator kind would share none of them.
        self.data, self.dropout, self._evaluation = (
            torch.Generator(self.device).manual_seed(3 * seed + i) for i in range(3)
        )
        set_dropout_generator(self.model, self.dropout)
        self.history: list[Metrics] = []
        """All evaluations so far, those before a resumed checkpoint included."""
        self._run_model = torch.compile(self.model) if config.compile else self.model

    def metrics(self, stop: Callable[[], bool] = lambda: False) -> Iterator[Metrics]:
        """Train to the end of the config, yielding at each `eval_every` steps and at the last; a
        run that has ended yields its last metrics again.

        A loss that is not finite ends the run as "diverged". `stop()` is asked before each step and
        ends it as "interrupted", with the figures of the last evaluation: nothing is measured then,
        so that a run which is continued is the same as one that was not stopped.
        """
        if self.history and self.history[-1].outcome is not None:
            yield self.history[-1]
            return
        for is_due in self._stretches(stop):
            m = self._measure() if is_due else self._interrupted()
            yield m
            if m.outcome == "diverged":
                return

    def train_step(self) -> Tensor:
        """One step of the optimiser; the loss before it, a scalar on the device."""
        config = self.config
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = config.lr_at(self.step)
        batch = self._batch()
        smoothing = config.label_smoothing
        options = {"label_smoothing": smoothing} if smoothing else {}
        with _precision(config.precision, self.device):
            loss = config.task.loss(self._outputs(batch), batch, **options)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        _clip(self.model, config.clip)
        self.optimizer.step()
        self.step += 1
        return loss.detach()

    def _batch(self) -> Batch:
        """What the next step is trained on."""
        task = self.config.task
        if isinstance(task, ParallelText | Text):
            return task.batch_at(self.step, self.config.batch_size, self.seed, self.device)
        return task.sample(self.config.batch_size, self.data)

    def _outputs(self, batch: Batch) -> Tensor:
        """What the model puts out for a batch of the training."""
        return self._run_model(*batch.inputs)

    def _measure(self) -> Metrics:
        loss, accuracy = self.evaluate()
        train_loss = torch.stack(self._losses).mean().item()
        self._losses = []
        outcome = None
        if not math.isfinite(loss) or not math.isfinite(train_loss):
            outcome = "diverged"
        elif self.step == self.config.n_steps:
            outcome = "ok"
        metrics = Metrics(
            step=self.step,
            train_loss=train_loss,
            loss=loss,
            accuracy=accuracy,
            outcome=outcome,
            **self._speed(),
        )
        self.history.append(metrics)
        return metrics

    def _interrupted(self) -> Metrics:
        names = ("train_loss", "loss", "accuracy", "steps_per_s", "seconds_left")
        last = {name: getattr(self.history[-1], name) for name in names if self.history}
        return Metrics(
            step=self.step, outcome="interrupted", **(dict.fromkeys(names, math.nan) | last)
        )

    @torch.no_grad()
    def evaluate(self) -> tuple[float, float]:
        """Loss in nats a token and accuracy, on data that no step has seen."""
        self.model.eval()
        config, task = self.config, self.config.task
        loss, n_batches, right, counted = 0.0, 0.0, 0, 0
        for batch in task.held_out(config.batch_size, config.eval_batches, self._evaluation):
            with _precision(config.precision, self.device):
                outputs = self.model(*batch.inputs)
            share = len(batch.targets) / config.batch_size  # the last may not be whole
            loss, n_batches = loss + share * task.loss(outputs, batch).item(), n_batches + share
            hits = (task.most_likely(outputs) == batch.targets) & batch.in_accuracy
            right, counted = right + hits.sum().item(), counted + batch.in_accuracy.sum().item()
        return loss / n_batches, right / counted

    def _restore(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        super()._restore(state)
        for name, generator in self._generators().items():
            generator.set_state(state[name])
        self.history = [Metrics(**metrics) for metrics in state["history"]]
        self._losses = list(state["losses"].to(self.device))

    def _generators(self) -> dict[str, torch.Generator]:
        return {"data": self.data, "dropout": self.dropout, "evaluation": self._evaluation}

    def _state(self) -> dict[str, Any]:
        return super()._state() | {
            "seed": self.seed,
            "history": [asdict(metrics) for metrics in self.history],
            "losses": torch.stack(self._losses) if self._losses else torch.zeros(0),
            **{name: g.get_state() for name, g in self._generators().items()},
        }


def train(
    config: TrainingConfig,
    *,
    seed: int = 0,
    device: str | None = None,
    watch: Callable[[Metrics], object] = lambda metrics: None,
) -> Training:
    """A run of a config to its end: its `model` is trained, its `history` holds the metrics.

    Args:
        watch: is called with each evaluation, such as `print`.

    Raises:
        ValueError: the device does not exist.
    """
    run = Training(config, seed=seed, device=device)
    for metrics in run.metrics():
        watch(metrics)
    return run


def _optimizer(config: TrainingConfig, model: nn.Module) -> torch.optim.Optimizer:
    options = {"lr": config.lr, "weight_decay": config.weight_decay}
    if config.optimizer == "radam":
        return torch.optim.RAdam(model.parameters(), decoupled_weight_decay=True, **options)
    return torch.optim.AdamW(model.parameters(), fused=True, **options)


def _clip(model: nn.Module, kind: str) -> None:
    if kind == "none":
        return
    parameters = [p for p in model.parameters() if p.grad is not None]
    if kind == "global":
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        return
    for parameter in parameters:
        torch.nn.utils.clip_grad_norm_(parameter, 1.0)


@contextmanager
def _precision(precision: str, device: torch.device) -> Iterator[None]:
    """Run a forward pass in a precision; TF32 is a switch of the whole process, set back after."""
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    try:
        if precision == "tf32":
            matmul.fp32_precision = "tf32"
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
            yield
    finally:
        matmul.fp32_precision = before
