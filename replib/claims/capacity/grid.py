"""Setting 1 of Schlag et al. 2021: every key once."""

from dataclasses import fields, replace

from replib.attention.dpfp import DPFPAttention
from replib.attention.performer import PerformerAttention
from replib.claims.capacity.evaluation import MeansConfig
from replib.claims.common import experiment
from replib.fast_weights import MemoryConfig, RetrievalConfig
from replib.lab.run import Job, RetrievalJob
from replib.tasks.retrieval import AssociativeRetrieval


def dpfp(nu: int, update_rule: str = "sum") -> MemoryConfig:
    """A memory with the features DPFP-ν."""
    options = DPFPAttention.Options(nu=nu)
    return MemoryConfig(attention="dpfp", options=options, update_rule=update_rule)


def favor(n_directions: int, update_rule: str = "sum") -> MemoryConfig:
    """A memory with the features of FAVOR+."""
    options = PerformerAttention.Options(n_directions=n_directions)
    return MemoryConfig(attention="performer", options=options, update_rule=update_rule)


# The published curves of setting 1, cheapest first; `MemoryConfig.published_name` is their name in
# `published.json`.
CAPACITY_MEMORIES = (
    *(MemoryConfig(attention="softmax"), MemoryConfig(attention="linear")),
    *(dpfp(1), dpfp(2), dpfp(3)),
    *(favor(64), favor(128), favor(512)),
)
TANH_FWM = ("tanh", "fwm")
# S at "laptop", and those of them that have three seeds; of the slowest memories fewer of both, and
# of tanh with fwm, which takes half an hour a run and reads nonsense from S = 20 on, one.
LAPTOP_KEYS = {*range(20, 201, 20), *range(200, 601, 40), 300, 500}
COARSE_KEYS = (20, 60, 100, 200, 280, 400, 600)
SLOW_KEYS, SLOW_COARSE_KEYS = LAPTOP_KEYS - {40, 80, 120, 160}, (20, 100, 200, 400, 600)
NO_EPS = 1e-37  # beside the normalisers of FAVOR+ nothing, and above 0 in float32
SMOKE = {"n_steps": 20, "eval_every": 10, "eval_sequences": 2}

# Memory and S at which a published loss is below what a mean over all keys can be.
WATCHED = (
    (MemoryConfig(attention="linear"), 100),
    (dpfp(1), 200),
    (dpfp(2), 400),
    (MemoryConfig(attention="linear"), 500),
    (dpfp(1), 300),
    (dpfp(2), 300),
)


def retrieval_config(
    n_keys: int, model: MemoryConfig, *, with_replacement: bool = False, **changes
) -> RetrievalConfig:
    """A run as published; "tanh" with the rule "fwm" has a smaller rate and a larger batch."""
    options = {}
    if (model.attention, model.update_rule) == TANH_FWM:
        options = {"lr": 1e-4, "batch_size": 128}
    task = AssociativeRetrieval(n_keys=n_keys, with_replacement=with_replacement)
    return RetrievalConfig(task=task, model=model, **(options | changes))


def is_slow(model: MemoryConfig) -> bool:
    """Whether the runs of a memory take as long as those of all others together."""
    return model.size == 512 or (model.attention, model.update_rule) == TANH_FWM


def retrieval_jobs(scale, memories, most_keys: int, *, with_replacement: bool) -> list[Job]:
    """A grid of S. At "laptop" three seeds at the ends and some S between, which come first, and
    one at others: at steps of 40 at most, and at all of the published grid; at "paper" five seeds
    at steps of 20. The slowest memories come last."""
    if scale == "smoke":
        return [_smoke(8, memory, with_replacement=with_replacement) for memory in memories]
    jobs = []
    for memory in memories:
        slow = is_slow(memory)
        keys, coarse = (SLOW_KEYS, SLOW_COARSE_KEYS) if slow else (LAPTOP_KEYS, COARSE_KEYS)
        if (memory.attention, memory.update_rule) == TANH_FWM:
            coarse = (20,)
        for n_keys in range(20, most_keys + 1, 20):
            if scale == "laptop" and n_keys not in keys:
                continue
            config = retrieval_config(n_keys, memory, with_replacement=with_replacement)
            n_seeds = 5 if scale == "paper" else 3 if n_keys in coarse else 1
            jobs.append(RetrievalJob(config=config, seeds=tuple(range(n_seeds))))
    return sorted(
        jobs,
        key=lambda job: (is_slow(job.config.model), -len(job.seeds), job.config.task.n_keys),
    )


def _smoke(n_keys: int, memory: MemoryConfig, **options) -> RetrievalJob:
    config = retrieval_config(n_keys, replace(memory, head_dim=16), **options, **SMOKE)
    return RetrievalJob(config=config, seeds=(0, 1))


@experiment("Associative retrieval, every key once: loss against the number of keys")
def capacity(scale: str) -> list[Job]:
    """Setting 1 of Schlag et al. 2021, section 6.1.1: every key once."""
    return retrieval_jobs(scale, CAPACITY_MEMORIES, 600, with_replacement=False)


@experiment("Associative retrieval: the published mean of losses beside that of all keys")
def evaluation(scale: str) -> list[Job]:
    """Setting 1 where a published loss is lower than it can be, with the mean that the published
    code takes beside that over all keys."""
    jobs = [
        RetrievalJob(config=retrieval_config(n_keys, memory), seeds=tuple(range(5)))
        for memory, n_keys in WATCHED
    ]
    if scale == "smoke":
        jobs = [_smoke(40, memory) for memory, _ in WATCHED[:3]]
    names = [one.name for one in fields(RetrievalConfig)]
    return [
        replace(job, config=MeansConfig(**{name: getattr(job.config, name) for name in names}))
        for job in jobs
    ]


@experiment("Associative retrieval: FAVOR+ without the published ε of its normalisers")
def favor_eps(scale: str) -> list[Job]:
    """FAVOR+ in setting 1 without the ε that the published code adds to its normalisers."""
    memories = [replace(m, eps=NO_EPS) for m in CAPACITY_MEMORIES if m.attention == "performer"]
    if scale == "smoke":
        return [_smoke(8, memory) for memory in memories]
    return [
        RetrievalJob(config=retrieval_config(n, memory), seeds=(0, 1, 2))
        for memory in memories
        for n in (20, 60, 100, 200)
        if not (scale == "laptop" and memory.size == 512 and n > 100)  # slow
    ]


EXPERIMENTS = (capacity, evaluation, favor_eps)
