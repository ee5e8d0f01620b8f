"""What can be run: a training, a measurement of costs, a training of memories. What a job runs on,
and its identity.
"""

import json
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar

from replib.attention import ATTENTION, options_of
from replib.attention.base import variant_label
from replib.fast_weights import RetrievalConfig, RetrievalMetrics, RetrievalTraining
from replib.lab import store
from replib.lab.configs import config_from
from replib.lab.runs.generation import GenerationConfig
from replib.lab.timing import DTYPES, CostConfig, timing_versions
from replib.training import Metrics, Training, TrainingConfig

# The config of each kind of run, by the `kind` of its rows.
CONFIGS: dict[str, type] = {}
STEPS: set[str] = set()  # kinds that are the cost of a step of a training


def register(config: type) -> None:
    """Let rows of a kind of run be read, and those of the cost of its steps where it trains."""
    CONFIGS[config.kind] = config
    if issubclass(config, TrainingConfig):
        CONFIGS[f"{config.kind} step"] = config
        STEPS.add(f"{config.kind} step")


for one in (TrainingConfig, CostConfig, GenerationConfig, RetrievalConfig):
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
    """

    experiment: str
    scale: str
    device: str | None = None
    stop: Callable[[], bool] = lambda: False
    watch: Callable[["Glimpse"], None] = lambda glimpse: None
    max_seconds_per_point: float = 20.0
    recording: int = 0


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
        raise NotImplementedError

    def ended(self, rows: Sequence[store.Row]) -> None:
        """To be called when the rows have been stored."""


@dataclass(frozen=True, kw_only=True)
class TrainingJob(Job):
    """One run of a training experiment; `keep` its weights beside its row (`lab.kept_models`)."""

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

    def execute(self, where):
        from replib.lab.runs import training

        return training.execute(self, where)

    def ended(self, rows):
        from replib.lab.runs import checkpointed

        checkpointed.discard(self, rows)


@dataclass(frozen=True, kw_only=True)
class RetrievalJob(Job):
    """Runs of associative retrieval that differ in their seed alone, computed together."""

    config: RetrievalConfig
    seeds: tuple[int, ...]

    @property
    def configs(self) -> tuple[Config, ...]:
        return (self.config,) * len(self.seeds)

    def left(self, done):
        pairs = zip(self.seeds, self.ids, strict=True)
        seeds = tuple(seed for seed, run in pairs if run not in done)
        return replace(self, seeds=seeds) if seeds else None

    def execute(self, where):
        from replib.lab.runs import retrieval

        return retrieval.execute(self, where)

    def ended(self, rows):
        from replib.lab.runs import checkpointed

        checkpointed.discard(self, rows)


@dataclass(frozen=True, kw_only=True)
class CostJob(Job):
    """Points that are measured together, interleaved, with this many repeats: of attention
    alone, of a whole training step, or of generating a token or a sequence."""

    configs: tuple[CostConfig, ...] | tuple[TrainingConfig, ...] | tuple[GenerationConfig, ...]
    n_repeats: int
    timed: ClassVar[bool] = True

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

    def execute(self, where):
        from replib.lab.runs import cost

        return cost.execute(self, where)


def config_of(row: store.Row) -> Config:
    """The config of a row that has been read or made."""
    return _config(row["kind"], json.dumps(row["config"], sort_keys=True))


@lru_cache(maxsize=4096)
def _config(kind: str, config: str) -> Config:
    return config_from(CONFIGS[kind], json.loads(config))


def words_of(row: store.Row) -> str:
    """A row in a line."""
    config, summary = config_of(row), row["summary"]
    model = getattr(config, "model", config)
    if isinstance(config, GenerationConfig):
        who = [config.way, config.span, f"{config.n_layers} layers batch {config.batch_size}"]
    else:
        who = [*model.variant, getattr(model, "update_rule", None)]
    who += [f"+{defect}" for defect in getattr(config, "defects", ())]
    figures = (f"{n} {summary[n]:z.4g}" for n in FIGURES if summary.get(n) is not None)
    why = f" ({row['detail']})" if row["detail"] else ""
    return (
        f"{row['experiment']} {' '.join(filter(None, who))} "
        f"N={getattr(config, 'task', config).seq_len} seed {row['seed']}: "
        f"{row['outcome']}{why} {', '.join(figures)}"
    )


def unavailable(config: Config, device_type: str) -> str | None:
    """Why a config's kernel cannot run on a kind of device; None where it can."""
    return _unavailable(config, getattr(config, "model", config).kernel, device_type)


def uses_compiled(config: Config, device_type: str) -> bool:
    """Whether a config runs on a kernel compiled for this kind of device, by name or by default."""
    if isinstance(config, RetrievalConfig):
        return False  # its kernels are compiled on the way
    model = getattr(config, "model", config)
    if device_type not in ATTENTION[model.attention].kernels:
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
    model = row["config"].get("model", row["config"])
    return model["attention"], variant_label(options_of(model), model.get("kernel"))


def kind_of(config: Config, *, cost: bool) -> str:
    """What kind of run a config is of, where a training's cost is that of a step."""
    return f"{config.kind} step" if cost and isinstance(config, TrainingConfig) else config.kind


def versions_of(config: Config, *, cost: bool) -> dict[str, int]:
    """The versions of the parts that compute a run, or the cost of a config, by their names."""
    if not (cost and isinstance(config, TrainingConfig)):
        return config.versions
    return config.versions | timing_versions(config.model.attention, config.model.kernel)


def identity(config: Config, seed: int = 0, *, cost: bool) -> str:
    """The run_id of a run, or of the cost of a config, under the present code."""
    versions = versions_of(config, cost=cost)
    return store.run_id(kind_of(config, cost=cost), config, seed, versions)
