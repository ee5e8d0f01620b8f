"""What can be run: a training, a measurement of costs, a training of memories. What a job runs on,
and its identity.
"""

import json
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import import_module
from typing import ClassVar

from replib.attention import ATTENTION
from replib.fast_weights import RetrievalConfig, RetrievalMetrics, RetrievalTraining
from replib.lab import store
from replib.lab.configs import config_from
from replib.lab.runs.generation import GenerationConfig
from replib.lab.text import sizes_text
from replib.lab.timing import DTYPES, WORKS, CostConfig, timing_versions
from replib.language_model import LanguageModelConfig
from replib.training import Metrics, Training, TrainingConfig

# By the `kind` of rows: their config, and the kind that it is a special one of, such as "training";
# "step" is the cost of a step of a training.
CONFIGS: dict[str, type] = {}
BASES: dict[str, str] = {}


def register(config: type) -> None:
    """Let rows of a kind of run be read, and those of the cost of its steps where it trains."""
    base = next((kind for kind, one in CONFIGS.items() if issubclass(config, one)), config.kind)
    CONFIGS[config.kind], BASES[config.kind] = config, base
    if base == TrainingConfig.kind:
        CONFIGS[f"{config.kind} step"], BASES[f"{config.kind} step"] = config, "step"


for one in (TrainingConfig, LanguageModelConfig, CostConfig, GenerationConfig, RetrievalConfig):
    register(one)

Config = TrainingConfig | CostConfig | GenerationConfig | RetrievalConfig


# Of a row, what a line of the terminal has room for.
FIGURES = ("final_loss", "best_loss", "final_accuracy", "bits_per_dim", "steps_per_s")
FIGURES += ("time_ms", "memory_bytes")


@dataclass(frozen=True)
class Where:
    """Where a job's rows belong, and what it runs on.

    Attributes:
        experiment, scale: what the rows are stored under.
        device: a name for `resolve_device`.
        stop: asked at every step; what is true ends the run, which is checkpointed.
        watch: told how far a run is.
        max_seconds_per_point: of timing; the slowest points get fewer repeats, never none.
        recording: the number of a recording of costs, the seed of its rows.
        keep: given a model that is to be kept, and its row; written beside the rows if left out.
    """

    experiment: str
    scale: str
    device: str | None = None
    stop: Callable[[], bool] = lambda: False
    watch: Callable[["Glimpse"], None] = lambda glimpse: None
    max_seconds_per_point: float = 20.0
    recording: int = 0
    keep: Callable[[Training, store.Row], object] | None = None


@dataclass(frozen=True)
class Glimpse:
    """A run on its way: its share that is done, one line of words, its rows as if it were stopped
    now; of a training also itself, and its last evaluation, None before the first."""

    fraction: float
    text: str
    rows: Callable[[], list[store.Row]]
    training: Training | RetrievalTraining | None = None
    metrics: Metrics | RetrievalMetrics | None = None


class Job:
    """What is run at once, and gives a row a config and seed."""

    kind: ClassVar[str]
    """That of its rows, or what it is a special one of: a module of `lab.runs` of this name runs
    it."""
    configs: tuple[Config, ...]
    seeds: tuple[int, ...]
    timed: ClassVar[bool] = False

    @property
    def ids(self) -> list[str]:
        """The run_id of each row under the present code."""
        pairs = zip(self.configs, self.seeds, strict=True)
        return [identity(config, seed, cost=self.timed) for config, seed in pairs]

    def on_device(self, device_type: str) -> "Job":
        """The job without what cannot be run on a kind of device; a warning says so."""
        return self

    def left(self, done: Collection[str]) -> "Job | None":
        """What of it has no row among those of some run_ids; None where all has."""
        raise NotImplementedError

    def execute(self, where: Where) -> Iterator[store.Row]:
        """Run, from a checkpoint where there is one, and yield the rows; nothing is stored."""
        return import_module(f"replib.lab.runs.{self.kind}").execute(self, where)

    def ended(self, rows: Sequence[store.Row]) -> None:
        """To be called when the rows have been stored."""
        if not self.timed:
            import_module("replib.lab.runs.checkpointed").discard(self, rows)


@dataclass(frozen=True, kw_only=True)
class TrainingJob(Job):
    """One run of a training experiment; `keep` its weights beside its row (`lab.kept_models`)."""

    kind: ClassVar[str] = "training"

    config: TrainingConfig
    seed: int
    keep: bool = False

    @property
    def configs(self) -> tuple[Config, ...]:
        return (self.config,)

    @property
    def seeds(self) -> tuple[int, ...]:
        return (self.seed,)

    def left(self, done):
        from replib.lab.kept_models import kept_run

        (run,) = self.ids
        kept = not self.keep or kept_run(self.config.model) == run
        return None if run in done and kept else self


@dataclass(frozen=True, kw_only=True)
class RetrievalJob(Job):
    """Runs of associative retrieval that differ in their seed alone, computed together."""

    kind: ClassVar[str] = "retrieval"

    config: RetrievalConfig
    seeds: tuple[int, ...]

    @property
    def configs(self) -> tuple[Config, ...]:
        return (self.config,) * len(self.seeds)

    def left(self, done):
        pairs = zip(self.seeds, self.ids, strict=True)
        seeds = tuple(seed for seed, run in pairs if run not in done)
        return replace(self, seeds=seeds) if seeds else None


@dataclass(frozen=True, kw_only=True)
class CostJob(Job):
    """Points that are measured together, interleaved, with this many repeats: of attention
    alone, of a whole training step, or of generating a token or a sequence."""

    kind: ClassVar[str] = "cost"
    timed: ClassVar[bool] = True

    configs: tuple[CostConfig, ...] | tuple[TrainingConfig, ...] | tuple[GenerationConfig, ...]
    n_repeats: int

    @property
    def seeds(self) -> tuple[int, ...]:
        return (0,) * len(self.configs)

    def on_device(self, device_type):
        kept = []
        for config in self.configs:
            why_not = unavailable(config, device_type)
            model = getattr(config, "model", config)
            if why_not is None:
                kept.append(config)
            elif model.kernel == device_type:  # its package is missing
                name = f"{model.attention} {model.kernel}"
                warnings.warn(f"{name} is left out: {why_not}", stacklevel=2)
        return replace(self, configs=tuple(kept))

    def left(self, done):
        return None if done.issuperset(self.ids) else self


def config_of(row: store.Row) -> Config:
    """The config of a row that has been read or made."""
    return _config(row["kind"], json.dumps(row["config"], sort_keys=True))


@lru_cache(maxsize=4096)
def _config(kind: str, config: str) -> Config:
    return config_from(CONFIGS[kind], json.loads(config))


def words_of(row: store.Row) -> str:
    """The run of a row, in a line: what is asked of its config is what that has."""
    config = config_of(row)
    model, task = getattr(config, "model", config), getattr(config, "task", config)
    said = [" ".join(filter(None, getattr(model, "variant", (getattr(model, "way", None),))))]
    if getattr(model, "update_rule", None) and model.attention != "softmax":
        said.append(model.update_rule)
    if hasattr(model, "span"):
        said.append(model.span)
    said.append(f"S = {task.n_keys}" if hasattr(task, "n_keys") else f"N = {task.seq_len}")
    if hasattr(task, "with_replacement"):
        said.append(f"D = {model.head_dim}")
        said += ["keys come back"] * task.with_replacement
        said += ["evaluated on half the length"] * config.eval_half_length
    else:
        said.append(f"batch {config.batch_size}")
    if hasattr(model, "span"):
        said.append(sizes_text(model.n_layers, model.n_heads, model.head_dim))
    if hasattr(config, "work"):
        said.append(WORKS[config.work])
    elif hasattr(config, "task"):
        said += [f"{config.n_steps} steps"] * (not hasattr(task, "n_keys"))
        said.append(f"seed {row['seed']}")
    return ", ".join([*said, *getattr(config, "defects", ())])


def line_of(row: store.Row) -> str:
    """A row in a line of the terminal: its run, how it ended, and its figures."""
    figures = [
        f"{n} {row['summary'][n]:z.4g}" for n in FIGURES if row["summary"].get(n) is not None
    ]
    why = f" ({row['detail']})" if row["detail"] else ""
    return f"{row['experiment']} {words_of(row)}: {row['outcome']}{why} {', '.join(figures)}"


def unavailable(config: Config, device_type: str) -> str | None:
    """Why a config's kernel cannot run on a kind of device; None where it can."""
    return _unavailable(config, getattr(config, "model", config).kernel, device_type)


def uses_compiled(config: Config, device_type: str) -> bool:
    """Whether a config runs on a kernel compiled for this kind of device, by name or by default."""
    model = getattr(config, "model", config)
    # Those of memories are compiled on the way.
    if hasattr(model, "update_rule") or device_type not in ATTENTION[model.attention].kernels:
        return False
    asked = model.kernel in (None, device_type)
    return asked and _unavailable(config, device_type, device_type) is None


def _unavailable(config, kernel: str | None, device_type: str) -> str | None:
    model = getattr(config, "model", config)
    kind = {"device_type": device_type, "dtype": DTYPES[getattr(config, "dtype", "float32")]}
    sizes = {"head_dim": model.head_dim, "options": model.options}
    return ATTENTION[model.attention].unavailable(kernel, **kind, **sizes)


def variant_of(row: store.Row) -> tuple[str, str | None]:
    """A row's mechanism, and what charts call its options and kernel: its config's `variant`."""
    config = config_of(row)
    return getattr(config, "model", config).variant


def kind_of(config: Config, *, cost: bool) -> str:
    """What kind of run a config is of, where a training's cost is that of a step."""
    step = f"{config.kind} step"
    return step if cost and step in CONFIGS else config.kind


def versions_of(config: Config, *, cost: bool) -> dict[str, int]:
    """The versions of the parts that compute a run, or the cost of a config, by their names."""
    if BASES[kind_of(config, cost=cost)] != "step":
        return config.versions
    return config.versions | timing_versions(config.model.attention, config.model.kernel)


def identity(config: Config, seed: int = 0, *, cost: bool) -> str:
    """The run_id of a run, or of the cost of a config, under the present code."""
    versions = versions_of(config, cost=cost)
    return store.run_id(kind_of(config, cost=cost), config, seed, versions)
