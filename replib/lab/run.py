"""What can be run: a training, a measurement of costs, a training of memories. What a job runs on,
and its identity.
"""

import warnings
from dataclasses import dataclass, replace

from replib.attention import ATTENTION
from replib.fast_weights import RetrievalConfig
from replib.lab import store
from replib.lab.runs.generation import GenerationConfig
from replib.lab.timing import DTYPES, CostConfig, timing_versions
from replib.training import TrainingConfig


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """One run of a training experiment; `keep` its weights beside its row (`lab.kept_models`)."""

    config: TrainingConfig
    seed: int
    keep: bool = False


@dataclass(frozen=True, kw_only=True)
class CostJob:
    """Points that are measured together, interleaved, with this many repeats: of attention
    alone, of a whole training step, or of generating a token or a sequence."""

    configs: tuple[CostConfig, ...] | tuple[TrainingConfig, ...] | tuple[GenerationConfig, ...]
    n_repeats: int


@dataclass(frozen=True, kw_only=True)
class RetrievalJob:
    """Runs of associative retrieval that differ in their seed alone, computed together."""

    config: RetrievalConfig
    seeds: tuple[int, ...]


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
Job = TrainingJob | CostJob | RetrievalJob


def configs_of(job: Job) -> tuple[Config, ...]:
    """What a job runs; a row each."""
    if isinstance(job, RetrievalJob):
        return (job.config,) * len(job.seeds)
    return (job.config,) if isinstance(job, TrainingJob) else job.configs


def is_generation(job: Job) -> bool:
    """Whether a job generates, a token at a time."""
    return any(isinstance(config, GenerationConfig) for config in configs_of(job))


def unavailable(config: Config, device_type: str) -> str | None:
    """Why a config's implementation cannot run on a kind of device; None where it can."""
    return _unavailable(config, getattr(config, "model", config).implementation, device_type)


def uses_compiled(config: Config, device_type: str) -> bool:
    """Whether a config runs on a kernel compiled for this kind of device, by name or by default."""
    if isinstance(config, RetrievalConfig):
        return False  # its kernels are compiled on the way
    model = getattr(config, "model", config)
    if device_type not in ATTENTION[model.attention].implementations:
        return False
    asked = model.implementation in (None, device_type)
    return asked and _unavailable(config, device_type, device_type) is None


def _unavailable(config, implementation: str | None, device_type: str) -> str | None:
    model = getattr(config, "model", config)
    dtype = DTYPES[getattr(config, "dtype", "float32")]
    return ATTENTION[model.attention].unavailable(
        implementation, device_type=device_type, dtype=dtype, head_dim=model.head_dim
    )


def on_device(job: Job, device_type: str) -> Job:
    """A job without the points that cannot be measured on a kind of device; a warning tells of a
    kernel for it whose package is missing."""
    if not isinstance(job, CostJob):
        return job
    kept = []
    for config in job.configs:
        why_not = unavailable(config, device_type)
        model = getattr(config, "model", config)
        if why_not is None:
            kept.append(config)
        elif model.implementation == device_type:
            name = f"{model.attention} {model.implementation}"
            warnings.warn(f"{name} is left out: {why_not}", stacklevel=2)
    return replace(job, configs=tuple(kept))


def kind_of(config: Config, *, cost: bool) -> str:
    """What kind of run a config is of, where a training's cost is that of a step."""
    return f"{config.kind} step" if cost and isinstance(config, TrainingConfig) else config.kind


def versions_of(config: Config, *, cost: bool) -> dict[str, int]:
    """The versions of the parts that compute a run, or the cost of a config, by their names."""
    if not (cost and isinstance(config, TrainingConfig)):
        return config.versions
    return config.versions | timing_versions(config.model.attention, config.model.implementation)


def identity(config: Config, seed: int = 0, *, cost: bool) -> str:
    """The run_id of a run, or of the cost of a config, under the present code."""
    versions = versions_of(config, cost=cost)
    return store.run_id(kind_of(config, cost=cost), config, seed, versions)


def run_ids(job: Job) -> list[str]:
    """The identities of the rows that a job yields."""
    if isinstance(job, TrainingJob):
        return [identity(job.config, job.seed, cost=False)]
    if isinstance(job, RetrievalJob):
        return [identity(job.config, seed, cost=False) for seed in job.seeds]
    return [identity(config, cost=True) for config in job.configs]
