"""The named experiments: which runs each is made of, at three scales, and how a run is recorded.

"smoke" shows in seconds that everything works, "laptop" takes a two-core CPU up to hours, and
"paper" has the sizes of the papers and wants a CUDA device. Hyperparameters live here alone.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from replib import drawing, store
from replib.attention import ATTENTION
from replib.autopsy import AutopsyConfig, article_defects, loss_defects
from replib.benchmark import DTYPES, Cost, CostConfig, measure_cost, tokens_batch
from replib.device import resolve_device
from replib.evaluation import MeansConfig, MeansTraining
from replib.images import dataset_named, load_images
from replib.memory import is_out_of_memory, release_memory
from replib.models import TransformerConfig
from replib.pixels import Pixels, bits, histogram_bits
from replib.retrieval import MemoryConfig, RetrievalConfig, RetrievalMetrics, RetrievalTraining
from replib.statistics import count_spikes
from replib.streams import (
    WAYS,
    GenerationConfig,
    geometric_positions,
    measure_generation,
)
from replib.tasks import AssociativeRetrieval, CausalCopy, SequenceCopy
from replib.training import Metrics, Training, TrainingConfig

SCALES = ("smoke", "laptop", "paper")
SOLVED_ACCURACY = 0.99  # a copy task counts as learned from here on
CHECKPOINT_EVERY_S = 30.0  # what a killed run loses at most
# What computes a row, besides mechanism and task: an edit there gives a run a new identity.
TRAINING_SOURCES = ("replib.models", "replib.training")
COST_SOURCES = ("replib.benchmark", "replib.memory")
GENERATION_SOURCES = ("replib.models", "replib.generation", "replib.streams")
RETRIEVAL_SOURCES = ("replib.tasks", "replib.retrieval", "replib.attention.feature_maps")
RULE_SOURCES = {
    "sum": ("replib.kernels.memory_cpu",),
    "delta": ("replib.kernels.delta", "replib.kernels.memory_cpu"),
    "fwm": (
        "replib.kernels.fwm",
        "replib.kernels.fwm_cpu",
        "replib.kernels.cpu",  # whose products and vectors fwm_cpu computes with
        "replib.kernels.vectors",
    ),
}
# Kernels of memories that are read once: no mechanism of attention computes with them.
MEMORY_KERNELS = ("replib.kernels.fwm", "replib.kernels.fwm_cpu", "replib.kernels.memory_cpu")

BOTH = ("softmax", "linear")

MAX_SECONDS_PER_POINT = 20.0  # of timing; the slowest points get fewer repeats, never none

# What is timed side by side: softmax as the 2022 replication wrote it, and fused; linear attention
# as its equation stands, in chunks of torch operations, and compiled for the device.
VARIANTS = (
    ("softmax", "textbook"),
    ("softmax", "fused"),
    ("linear", "plain"),
    ("linear", "torch"),
    ("linear", "cpu"),
    ("linear", "cuda"),
)
# The paper's figures have LSH attention beside the two that are judged: figure 2 of 4 rounds,
# figure 1 of each of these.
LSH_COPY = ("lsh", "4 rounds")
LSH_VARIANTS = (("lsh", "1 round"), LSH_COPY, ("lsh", "8 rounds"))


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """One run of a training experiment; `keep` its weights beside its row (`replib.drawing`)."""

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


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A named grid of jobs a scale, the same for every device; see `on_device`."""

    name: str
    title: str
    jobs: Callable[[str], list[Job]]


def laptop_model(attention: str, implementation: str | None = None) -> TransformerConfig:
    """A model that learns to copy in seconds on a CPU.

    Deviation: the paper's has 4 layers, 8 heads of 32, post-norm and dropout; pre-norm without
    dropout learns in a tenth of the steps.
    """
    return TransformerConfig(
        attention=attention,
        implementation=implementation,
        n_layers=2,
        n_heads=4,
        d_model=64,
        d_feedforward=128,
        norm="pre",
        dropout=0.0,
    )


def laptop_copy(attention: str, seq_len: int, n_steps: int, **changes) -> TrainingConfig:
    """The causal copy task at a size for a CPU."""
    options = {
        "task": CausalCopy(seq_len=seq_len),
        "model": laptop_model(attention),
        "batch_size": 32,
        "n_steps": n_steps,
        "optimizer": "adamw",
        "lr": 5e-3,
        "schedule": "cosine",
        "warmup_steps": 30,
        "clip": "global",
        "eval_every": max(1, min(20, n_steps // 10)),
    }
    return TrainingConfig(**options | changes)


def _convergence(scale: str) -> list[Job]:
    """Katharopoulos et al. 2020, Fig. 2; LSH attention after those that are judged."""
    attention, rounds = LSH_COPY
    if scale == "paper":
        configs = [TrainingConfig(model=TransformerConfig(attention=a)) for a in BOTH]
        lsh = TrainingConfig(model=TransformerConfig(attention=attention, implementation=rounds))
        return _seeds(configs, 5) + _seeds([lsh], 3)
    if scale == "smoke":
        return _seeds([laptop_copy(a, 16, 60) for a in BOTH], 1)
    steps = {16: 1000, 32: 1500, 64: 3000, 128: 3000}
    model = laptop_model(attention, rounds)
    lsh = [laptop_copy(attention, n, s, model=model) for n, s in steps.items()]
    judged = [laptop_copy(a, n, s) for n, s in steps.items() for a in BOTH]
    short, long = lsh[:2], lsh[2:]  # a long one takes up to half an hour
    return _seeds(judged, 5) + _seeds(short, 3) + _seeds(long, 1)


def _sequence_copy(scale: str) -> list[Job]:
    """The 2022 replication's task: full-size model at the paper scale, a small one below."""
    lengths = (8, 16, 32, 64)
    if scale == "paper":
        configs = [
            TrainingConfig(
                task=SequenceCopy(seq_len=n),
                model=replication_model(a),
                batch_size=8,
                n_steps=3000,
                lr_drop_step=3000,
                eval_every=25,
            )
            for n in lengths
            for a in BOTH
        ]
        return _seeds(configs, 5)
    n_steps = 60 if scale == "smoke" else 3000
    configs = [
        laptop_copy(a, n, n_steps, task=SequenceCopy(seq_len=n), batch_size=8, lr=2e-3)
        for n in (lengths[:1] if scale == "smoke" else lengths)
        for a in BOTH
    ]
    return _seeds(configs, 1 if scale == "smoke" else 3)


def replication_model(attention: str, implementation: str | None = None) -> TransformerConfig:
    """The sizes that Do & Bergner 2022 give for their encoder and decoder."""
    return TransformerConfig(
        attention=attention,
        implementation=implementation,
        n_layers=4,
        n_heads=8,
        d_model=512,
        d_feedforward=1024,
        positions="added",
    )


def _scaling(scale: str) -> list[Job]:
    """Katharopoulos et al. 2020, Fig. 1: the batch shrinks as N grows. LSH attention is timed by
    itself, after what is judged."""
    first, last, tokens, n_repeats = {
        "smoke": (6, 8, 2**8, 3),
        "laptop": (6, 14, 2**12, 7),
        "paper": (9, 16, 2**16, 11),
    }[scale]
    return [
        CostJob(
            configs=tuple(
                CostConfig(
                    attention=a,
                    implementation=i,
                    seq_len=2**e,
                    batch_size=tokens_batch(tokens, 2**e),
                    work=work,
                )
                for a, i in variants
            ),
            n_repeats=n_repeats,
        )
        for variants in ((VARIANTS,) if scale == "smoke" else (VARIANTS, LSH_VARIANTS))
        for work in ("forward", "forward_backward")
        for e in range(first, last + 1)
    ]


def _crossover(scale: str) -> list[Job]:
    """Every variant at a fixed batch, from lengths where softmax must win."""
    first, last, batches, n_repeats = {
        "smoke": (4, 7, (1,), 3),
        "laptop": (3, 11, (1, 8), 15),
        "paper": (5, 14, (1, 8), 21),
    }[scale]
    return [
        CostJob(
            configs=tuple(
                CostConfig(attention=a, implementation=i, seq_len=2**e, batch_size=batch, work=work)
                for a, i in VARIANTS
            ),
            n_repeats=n_repeats,
        )
        for batch in batches
        for work in ("forward", "forward_backward")
        for e in range(first, last + 1)
    ]


def _step_time(scale: str) -> list[Job]:
    """One training step of the 2022 replication's model, at the lengths of its Table 1."""
    lengths = {
        "smoke": (8, 16),
        "laptop": (8, 16, 32, 64, 128, 256),
        "paper": (8, 16, 32, 64, 128, 256, 512, 1024, 2048),
    }[scale]
    model = laptop_model if scale == "smoke" else replication_model
    return [
        CostJob(
            configs=tuple(
                TrainingConfig(
                    task=SequenceCopy(seq_len=n), model=model(a, i), batch_size=8, n_steps=3000
                )
                for a, i in VARIANTS
            ),
            n_repeats=3 if scale == "smoke" else 11,
        )
        for n in lengths
    ]


def pixel_model(attention: str) -> TransformerConfig:
    """A model of the 8 x 8 digits that trains in a minute or two on one core, and whose weights are
    a small file."""
    return TransformerConfig(
        attention=attention,
        n_layers=3,
        n_heads=4,
        d_model=64,
        d_feedforward=128,
        norm="pre",
        dropout=0.1,
    )


def paper_images(attention: str, images: str) -> TrainingConfig:
    """Katharopoulos et al. 2020, section 4.2 and its supplement; batch and number of steps are
    those that their published code names for MNIST (250 epochs).

    Deviation: for CIFAR-10 the paper says 7 days, and batch 4 for linear attention and 1 for
    softmax; here both have batch 4 and the 500,000 steps that the published code names.
    """
    n_layers, batch_size, n_steps = {"mnist": (8, 16, 937_500), "cifar10": (16, 4, 500_000)}[images]
    return TrainingConfig(
        task=Pixels(images=images),
        model=TransformerConfig(attention=attention, n_layers=n_layers),
        batch_size=batch_size,
        n_steps=n_steps,
        lr=1e-4,
        lr_drop_step=n_steps,
        eval_every=n_steps // 50,
        eval_batches=dataset_named(images).n_test // batch_size,
    )


def _images(scale: str) -> list[Job]:
    """Models of images, pixel by pixel. The hyperparameters of the digits were chosen on a part of
    the images to train on."""
    if scale == "paper":
        return _seeds([paper_images(a, name) for name in ("mnist", "cifar10") for a in BOTH], 1)
    n_steps = 30 if scale == "smoke" else 2000
    configs = [
        TrainingConfig(
            task=Pixels(),
            model=pixel_model(a),
            batch_size=32,
            n_steps=n_steps,
            optimizer="adamw",
            lr=4e-3,
            schedule="cosine",
            warmup_steps=50,
            clip="global",
            eval_every=n_steps // 10 if scale == "smoke" else 50,
            eval_batches=1 if scale == "smoke" else 8,  # at 32 images each, all 252 of the test
        )
        for a in BOTH
    ]
    jobs = _seeds(configs, 1 if scale == "smoke" else 3)
    return [replace(job, keep=scale == "laptop" and job.seed == 0) for job in jobs]


# The paper's models of images (its tables 1 and 2; 8 heads of 32): tokens of an image, layers.
IMAGE_SHAPES = {"MNIST": (784, 8), "CIFAR-10": (3072, 16)}
LONG_STREAM = 1_000_000  # tokens
LONG_CACHE = 2**14  # tokens with a cache beside it; beyond, its bytes are computed


def _generation(scale: str) -> list[Job]:
    """Katharopoulos et al. 2020, tables 1, 2, 4 and 5: an image at their sizes, for one image at a
    time and for several; and streams without end."""
    if scale == "smoke":
        sizes = {"n_layers": 1, "n_heads": 2, "head_dim": 8}
        jobs = [job for batch in (1, 3) for job in _tokens(16, 3, batch_size=batch, **sizes)]
        jobs += _sequences(WAYS, 16, 2, batch_size=1, **sizes)
        return [*jobs, *_streams(200, 100)]
    jobs = []
    batches = {"laptop": (32, 8), "paper": (1024, 128)}[scale]
    for (n, n_layers), several in zip(IMAGE_SHAPES.values(), batches, strict=True):
        for batch_size in (1, several):
            sizes = {"n_layers": n_layers, "batch_size": batch_size}
            jobs += _tokens(n, 11, **sizes)
            # The other whole sequences would take minutes to hours each.
            small = n == 784 and batch_size == 1
            ways = WAYS if small else ("recurrent", "cache")
            ways = ways if n == 784 or batch_size == 1 else ("recurrent",)
            jobs += _sequences(ways, n, 5, **sizes)
    return jobs + _streams(LONG_STREAM, LONG_CACHE)


def _tokens(last: int, n_repeats: int, ways=tuple(WAYS), **sizes) -> list[CostJob]:
    """One token at each of a geometric grid of positions; a job a position, the first first."""
    return [
        CostJob(
            configs=tuple(GenerationConfig(way=way, seq_len=n, **sizes) for way in ways),
            n_repeats=n_repeats,
        )
        for n in geometric_positions(last)
    ]


def _sequences(ways, seq_len: int, n_repeats: int, **sizes) -> list[CostJob]:
    """Whole sequences, all ways side by side but for recomputing, which takes so much longer that
    the others would get no repeats beside it."""
    sizes |= {"seq_len": seq_len, "span": "sequence"}
    together = [way for way in ways if way != "recompute"]
    alone = [way for way in ways if way == "recompute"]
    return [
        CostJob(
            configs=tuple(GenerationConfig(way=way, **sizes) for way in some), n_repeats=n_repeats
        )
        for some in (together, alone)
        if some
    ]


def _streams(n_tokens: int, n_cached: int) -> list[CostJob]:
    """A stream of a small model, and a shorter one whose cache grows."""
    sizes = {"span": "stream", "n_layers": 2, "n_heads": 4, "head_dim": 16}
    return [
        CostJob(configs=(GenerationConfig(way=way, seq_len=n, **sizes),), n_repeats=1)
        for way, n in (("recurrent", n_tokens), ("cache", n_cached))
    ]


def ablation(every: tuple[str, ...]) -> list[tuple[str, ...]]:
    """The sets of defects to compare: none, all, each alone on, and each alone off."""
    return [(), every, *((one,) for one in every), *alone_off(every)]


def alone_off(every: tuple[str, ...]) -> list[tuple[str, ...]]:
    """All but one of some defects."""
    return [tuple(one for one in every if one != off) for off in every]


def _autopsy(scale: str) -> list[Job]:
    """The 2022 task with defects: losses; what is told first by them comes first.

    Defects that are merely slow are alone on, and in one run of all, and left out of the others.
    """
    lengths = (8,) if scale == "smoke" else (8, 16, 32, 64)
    n_seeds = 1 if scale == "smoke" else 3
    n_steps = 60 if scale == "smoke" else 3000

    def jobs(seed: int, sets_of: Callable[[str], list[tuple[str, ...]]]) -> list[Job]:
        return [
            TrainingJob(config=with_defects(_mended(scale, attention, n, n_steps), one), seed=seed)
            for n, attention in product(lengths, BOTH)
            for one in sets_of(attention)
        ]

    def some(attention: str) -> list[tuple[str, ...]]:
        return [(), loss_defects(attention), *((one,) for one in article_defects(attention))]

    stages = [(seed, some) for seed in range(n_seeds)]
    stages.append((0, lambda attention: [article_defects(attention)] * (attention == "linear")))
    stages += [(seed, lambda a: alone_off(loss_defects(a))) for seed in range(n_seeds)]
    stages += [(seed, _optimiser_and_mask_mended) for seed in range(n_seeds)]
    return [job for seed, sets_of in stages for job in jobs(seed, sets_of)]


def _optimiser_and_mask_mended(attention: str) -> list[tuple[str, ...]]:
    """With the optimiser alone mended broken linear runs learn; with the mask as well they can
    learn no leak."""
    kept = tuple(one for one in loss_defects("linear") if one not in ("adam", "leak"))
    return [kept] * (attention == "linear")


def _mended(scale: str, attention: str, seq_len: int, n_steps: int) -> TrainingConfig:
    """A run of the 2022 task without defects."""
    task = SequenceCopy(seq_len=seq_len)
    if scale != "paper":
        return laptop_copy(attention, seq_len, n_steps, task=task, batch_size=8, lr=2e-3)
    full = {"batch_size": 8, "lr_drop_step": n_steps, "eval_every": 25}
    return TrainingConfig(task=task, model=replication_model(attention), n_steps=n_steps, **full)


def _autopsy_time(scale: str) -> list[Job]:
    """A training step of the article's model with defects, at the lengths of its Table 1; both
    mechanisms and all sets of defects of a length are timed together."""
    lengths = (8,) if scale == "smoke" else (8, 16, 32, 64)
    return [_steps_with_defects(scale, n, ablation, n_repeats=9) for n in lengths]


def _autopsy_longer(scale: str) -> list[Job]:
    """The same step, mended and with all its defects, at lengths that the article did not time."""
    lengths = (16,) if scale == "smoke" else (128, 256)
    return [_steps_with_defects(scale, n, lambda every: ((), every), n_repeats=5) for n in lengths]


def _steps_with_defects(
    scale: str, n: int, sets: Callable[[tuple[str, ...]], Sequence[tuple[str, ...]]], n_repeats: int
) -> CostJob:
    """A step of both mechanisms at one N with some `sets` of their defects, timed together."""
    model = laptop_model if scale == "smoke" else replication_model
    return CostJob(
        configs=tuple(
            AutopsyConfig(
                task=SequenceCopy(seq_len=n),
                model=model(attention),
                batch_size=8,
                n_steps=3000,
                defects=defects,
            )
            for attention in BOTH
            for defects in sets(article_defects(attention))
        ),
        n_repeats=3 if scale == "smoke" else n_repeats,
    )


def with_defects(config: TrainingConfig, defects: tuple[str, ...]) -> AutopsyConfig:
    """A config of the 2022 task with some of the replication's defects."""
    values = {one.name: getattr(config, one.name) for one in fields(TrainingConfig)}
    return AutopsyConfig(**values | {"defects": defects})


def _seeds(configs: list[TrainingConfig], n_seeds: int) -> list[Job]:
    return [TrainingJob(config=config, seed=seed) for config in configs for seed in range(n_seeds)]


# The published curves of setting 1 and of setting 2, cheapest first, as they are named in
# `published.json`: softmax_cat, linear_sum, ... and dpfp1_ours, tanh_fwm, ...
CAPACITY_MEMORIES = (
    MemoryConfig(attention="softmax"),
    MemoryConfig(attention="linear"),
    MemoryConfig(attention="dpfp", implementation="nu1"),
    MemoryConfig(attention="dpfp", implementation="nu2"),
    MemoryConfig(attention="dpfp", implementation="nu3"),
    MemoryConfig(attention="performer", implementation="64"),
    MemoryConfig(attention="performer", implementation="128"),
    MemoryConfig(attention="performer", implementation="512"),
)
UPDATE_RULE_MEMORIES = (
    MemoryConfig(attention="dpfp", implementation="nu1", update_rule="sum"),
    MemoryConfig(attention="linear", update_rule="delta"),
    MemoryConfig(attention="dpfp", implementation="nu1", update_rule="delta"),
    MemoryConfig(attention="dpfp", implementation="nu2", update_rule="delta"),
    MemoryConfig(attention="performer", implementation="128", update_rule="delta"),
    MemoryConfig(attention="dpfp", implementation="nu1", update_rule="fwm"),
    MemoryConfig(attention="tanh", update_rule="fwm"),
)


TANH_FWM = ("tanh", "fwm")
# S at "laptop", and those of them that have three seeds; of the slowest memories fewer of both.
LAPTOP_KEYS = {*range(20, 201, 20), *range(200, 601, 40), 300, 500}
COARSE_KEYS = (20, 60, 100, 200, 280, 400, 600)
SLOW_KEYS, SLOW_COARSE_KEYS = LAPTOP_KEYS - {40, 80, 120, 160}, (20, 100, 200, 400, 600)


def retrieval_config(
    n_keys: int, model: MemoryConfig, *, with_replacement: bool = False, **changes
) -> RetrievalConfig:
    """A run as published; "tanh" with the rule "fwm" has a smaller rate and a larger batch."""
    options = {}
    if (model.attention, model.update_rule) == TANH_FWM:
        options = {"lr": 1e-4, "batch_size": 128}
    task = AssociativeRetrieval(n_keys=n_keys, with_replacement=with_replacement)
    return RetrievalConfig(task=task, model=model, **(options | changes))


def _capacity(scale: str) -> list[Job]:
    """Setting 1 of Schlag et al. 2021, section 6.1.1: every key once."""
    return _retrieval(scale, CAPACITY_MEMORIES, 600, with_replacement=False)


def _update_rules(scale: str) -> list[Job]:
    """Setting 2 of Schlag et al. 2021, section 6.1.2: keys come back with new values. The memories
    that solve any S, and the sum, are also evaluated as the published runs are; at S = 80 and 120
    too, between which and 100 the last S solved may be."""
    jobs = _retrieval(scale, UPDATE_RULE_MEMORIES, 200, with_replacement=True)
    if scale == "smoke":
        return jobs
    alike = [
        RetrievalJob(
            config=retrieval_config(n_keys, m, with_replacement=True, eval_half_length=True),
            seeds=(0, 1, 2),
        )
        for n_keys in (20, 60, 100, 200, 80, 120)
        for m in UPDATE_RULE_MEMORIES[:4]
    ]
    return sorted(jobs + alike, key=lambda job: _is_slow(job.config.model))


# Memory and S at which a published loss is below what a mean over all keys can be.
WATCHED = (
    (MemoryConfig(attention="linear"), 100),
    (MemoryConfig(attention="dpfp", implementation="nu1"), 200),
    (MemoryConfig(attention="dpfp", implementation="nu2"), 400),
)


def _evaluation(scale: str) -> list[Job]:
    """Setting 1 where a published loss is lower than it can be, with the mean that the published
    code takes beside that over all keys."""
    seeds, changes = tuple(range(5)), {}
    if scale == "smoke":
        seeds, changes = (0, 1), {"n_steps": 20, "eval_every": 10, "eval_sequences": 2}
    jobs = []
    for memory, n_keys in WATCHED:
        if scale == "smoke":
            memory, n_keys = replace(memory, head_dim=16), 40
        config = retrieval_config(n_keys, memory, **changes)
        values = {one.name: getattr(config, one.name) for one in fields(RetrievalConfig)}
        jobs.append(RetrievalJob(config=MeansConfig(**values), seeds=seeds))
    return jobs


def _is_slow(model: MemoryConfig) -> bool:
    """Whether the runs of a memory take as long as those of all others together."""
    return model.implementation == "512" or (model.attention, model.update_rule) == TANH_FWM


def _retrieval(scale, memories, most_keys: int, *, with_replacement: bool) -> list[Job]:
    """A grid of S. At "laptop" three seeds at the ends and some S between, which come first, and
    one at others: at steps of 40 at most, and at all of the published grid; at "paper" five seeds
    at steps of 20. The slowest memories come last."""
    if scale == "smoke":
        changes = {"n_steps": 20, "eval_every": 10, "eval_sequences": 2}
        model = {"head_dim": 16}
        return [
            RetrievalJob(
                config=retrieval_config(
                    8, replace(m, **model), with_replacement=with_replacement, **changes
                ),
                seeds=(0, 1),
            )
            for m in memories
        ]
    jobs = []
    for memory in memories:
        slow = _is_slow(memory)
        keys, coarse = (SLOW_KEYS, SLOW_COARSE_KEYS) if slow else (LAPTOP_KEYS, COARSE_KEYS)
        for n_keys in range(20, most_keys + 1, 20):
            if scale == "laptop" and n_keys not in keys:
                continue
            config = retrieval_config(n_keys, memory, with_replacement=with_replacement)
            n_seeds = 5 if scale == "paper" else 3 if n_keys in coarse else 1
            jobs.append(RetrievalJob(config=config, seeds=tuple(range(n_seeds))))
    return sorted(
        jobs,
        key=lambda job: (_is_slow(job.config.model), -len(job.seeds), job.config.task.n_keys),
    )


EXPERIMENTS = {
    experiment.name: experiment
    for experiment in (
        Experiment(
            name="convergence",
            title="Causal copy task: loss and accuracy over training",
            jobs=_convergence,
        ),
        Experiment(
            name="sequence_copy",
            title="Sequence-to-sequence copy of the 2022 replication: loss over training",
            jobs=_sequence_copy,
        ),
        Experiment(
            name="scaling",
            title="Time and memory of attention against N, batch scaled inversely",
            jobs=_scaling,
        ),
        Experiment(
            name="crossover",
            title="Time of attention against N at a fixed batch",
            jobs=_crossover,
        ),
        Experiment(
            name="step_time",
            title="Time of one training step of the 2022 replication's model against N",
            jobs=_step_time,
        ),
        Experiment(
            name="autopsy",
            title="The 2022 replication's task with its defects: loss over training",
            jobs=_autopsy,
        ),
        Experiment(
            name="autopsy_time",
            title="Time of one training step with the 2022 replication's defects",
            jobs=_autopsy_time,
        ),
        Experiment(
            name="autopsy_longer",
            title="Time of one training step, mended and broken, beyond the article's lengths",
            jobs=_autopsy_longer,
        ),
        Experiment(
            name="images",
            title="Images pixel by pixel: bits per dimension over training",
            jobs=_images,
        ),
        Experiment(
            name="generation",
            title="Time and memory of generating, a token at a time",
            jobs=_generation,
        ),
        Experiment(
            name="capacity",
            title="Associative retrieval, every key once: loss against the number of keys",
            jobs=_capacity,
        ),
        Experiment(
            name="update_rules",
            title="Associative retrieval, keys with new values: loss against the number of keys",
            jobs=_update_rules,
        ),
        Experiment(
            name="evaluation",
            title="Associative retrieval: the published mean of losses beside that of all keys",
            jobs=_evaluation,
        ),
    )
}


def live_copy_jobs(values: Mapping[str, Any]) -> list[TrainingJob]:
    """The runs that the convergence notebook's controls ask for; a run per mechanism and seed."""
    task = TASKS[values["task"]](seq_len=values["seq_len"])
    sizes = {
        "n_layers": values["n_layers"],
        "n_heads": values["n_heads"],
        "d_model": values["n_heads"] * values["head_dim"],
        "d_feedforward": 2 * values["n_heads"] * values["head_dim"],
    }
    return [
        TrainingJob(
            config=laptop_copy(
                attention,
                values["seq_len"],
                values["n_steps"],
                task=task,
                model=replace(laptop_model(attention), **sizes),
                batch_size=values["batch_size"],
                lr=values["lr"],
            ),
            seed=seed,
        )
        for seed in range(values["seeds"])
        for attention in values["attention"]
    ]


TASK_EXPERIMENTS = {CausalCopy: "convergence", SequenceCopy: "sequence_copy"}
TASKS = {"causal copy": CausalCopy, "encoder-decoder copy": SequenceCopy}

ALL_VARIANTS = {
    f"{attention} {implementation}": (attention, implementation)
    for attention, mechanism in ATTENTION.items()
    for implementation in mechanism.implementations
}
"""Every mechanism in each of its implementations, by the name that controls show."""


def live_cost_jobs(values: Mapping[str, Any]) -> list[CostJob]:
    """The points that a cost notebook's controls ask for; a job a length, shortest first.

    `tokens` scales the batch inversely with N; without it the batch is `batch_size`.

    Raises:
        ValueError: an implementation cannot run on the device.
    """
    first, last = (round(math.log2(values[name])) for name in ("shortest", "seq_len"))
    jobs = [
        CostJob(
            configs=tuple(
                CostConfig(
                    attention=attention,
                    implementation=implementation,
                    seq_len=2**e,
                    batch_size=(
                        tokens_batch(values["tokens"], 2**e)
                        if "tokens" in values
                        else values["batch_size"]
                    ),
                    n_heads=values["n_heads"],
                    head_dim=values["head_dim"],
                    work=values["work"],
                )
                for attention, implementation in map(ALL_VARIANTS.get, values["variants"])
            ),
            n_repeats=values["repeats"],
        )
        for e in range(min(first, last), last + 1)
    ]
    device_type = resolve_device(values.get("device")).type
    for config in jobs[0].configs:
        if why_not := unavailable(config, device_type):
            name = f"{config.attention} {config.implementation}"
            raise ValueError(f"{name} cannot run with these settings: {why_not}")
    return jobs


def live_generation_jobs(values: Mapping[str, Any]) -> list[CostJob]:
    """The tokens that the generation notebook's controls ask for; a job a position."""
    names = ("batch_size", "n_layers", "n_heads", "head_dim")
    sizes = {name: values[name] for name in names}
    return _tokens(values["seq_len"], values["repeats"], values["ways"], **sizes)


def live_stream_jobs(values: Mapping[str, Any]) -> list[CostJob]:
    """The two streams that the generation notebook's second panel asks for."""
    return _streams(values["n_tokens"], min(values["n_tokens"], values["n_cached"]))


AUTOPSY_MODELS = ("small", "the article's")


def live_autopsy_jobs(values: Mapping[str, Any]) -> list[TrainingJob | CostJob]:
    """The runs that the autopsy notebook's switches ask for: mended, and with those of the
    `defects` that the article's runs of the mechanism had; the steps of all are timed together.

    `measure` leaves out the losses ("step times") or the times ("losses").
    """
    n = values["seq_len"]
    configs = []
    for attention in values["attention"]:
        chosen = tuple(one for one in article_defects(attention) if one in values["defects"])
        options = {"task": SequenceCopy(seq_len=n), "batch_size": 8, "lr": 2e-3}
        if values["model"] != AUTOPSY_MODELS[0]:
            options |= {"model": replication_model(attention), "lr": 1e-3}
        mended = laptop_copy(attention, n, values["n_steps"], **options)
        configs += [with_defects(mended, defects) for defects in dict.fromkeys(((), chosen))]
    jobs: list[TrainingJob | CostJob] = []
    if values["measure"] != "losses" and configs:
        jobs.append(CostJob(configs=tuple(configs), n_repeats=values["repeats"]))
    if values["measure"] != "step times":
        jobs += _seeds(configs, values["seeds"])
    return jobs


RETRIEVAL_SETTINGS = {"every key once": False, "keys come back": True}
"""Whether keys are drawn with replacement: settings 1 and 2 of the paper."""
MIN_EVALUATIONS = 10  # of a live run; from 1000 steps on they are 100 steps apart, as published
NO_EPS = 1e-37  # beside the normalisers of FAVOR+ nothing, and above 0 in float32


def live_retrieval_jobs(values: Mapping[str, Any]) -> list[RetrievalJob]:
    """The runs that the fast weights notebook's controls ask for; a job a mechanism, its seeds
    together. Softmax attention has no update rule. With the most steps and all defects off a run is
    as published.

    Raises:
        ValueError: evaluation on half the length where every key comes once.
    """
    jobs = []
    for attention in values["attention"]:
        implementations = {"dpfp": f"nu{values['nu']}", "performer": str(values["n_directions"])}
        mended = attention == "performer" and not values["published_eps"]
        model = MemoryConfig(
            attention=attention,
            implementation=implementations.get(attention),
            update_rule="sum" if attention == "softmax" else values["update_rule"],
            head_dim=values["head_dim"],
            **({"eps": NO_EPS} if mended else {}),
        )
        config = retrieval_config(
            values["n_keys"],
            model,
            with_replacement=RETRIEVAL_SETTINGS[values["setting"]],
            n_steps=values["n_steps"],
            eval_every=max(
                1, min(RetrievalConfig.eval_every, values["n_steps"] // MIN_EVALUATIONS)
            ),
            eval_half_length=values["eval_half_length"],
            report=values["report"],
        )
        jobs.append(RetrievalJob(config=config, seeds=tuple(range(values["seeds"]))))
    return jobs


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


def refused_variants() -> dict[str, str]:
    """The names of ALL_VARIANTS that can run on no device of this machine, each with the reason."""
    kinds = ["cpu", *["cuda"] * torch.cuda.is_available()]
    refused = {}
    for name, (attention, implementation) in ALL_VARIANTS.items():
        config = CostConfig(attention=attention, implementation=implementation)
        reasons = [unavailable(config, kind) for kind in kinds]
        if all(reasons):
            refused[name] = reasons[0]
    return refused


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


def recorded_rows(name: str) -> list[store.Row]:
    """The rows of `data/` to judge and show: the last of each run, "smoke" runs only where there
    are no others, as they are too short to say anything."""
    rows = store.latest(store.read_rows(name))
    return [row for row in rows if row["scale"] != "smoke"] or rows


def core_seconds(row: store.Row) -> float:
    """Seconds of one core that a training took, 0 where a row does not tell."""
    told, threads = row["summary"], row["provenance"]["threads"]
    if "seconds" in told and "seeds_together" in told:
        return threads * told["seconds"] / told["seeds_together"]
    if told.get("n_steps") and told.get("steps_per_s"):
        return threads * told["n_steps"] / told["steps_per_s"]
    return 0.0


def experiment_named(name: str) -> Experiment:
    """The experiment of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in EXPERIMENTS:
        raise ValueError(f"unknown experiment {name!r}: use {', '.join(EXPERIMENTS)}")
    return EXPERIMENTS[name]


def record(
    experiment: Experiment,
    scale: str,
    *,
    device: str | None = None,
    stop: Callable[[], bool] = lambda: False,
    on_metrics: Callable[[Job, Metrics | RetrievalMetrics], None] = lambda job, metrics: None,
    retime_below: int = 0,
) -> Iterator[store.Row]:
    """Run the jobs that have no finished row on this kind of device yet, append each row to
    `data/` and yield it. A stopped or killed training resumes at its last checkpoint; one that
    another process is at is left to it, so that two processes share an experiment. Points that are
    timed together are timed again together where one of them is new. A run whose images are not
    there is left out with a warning. One whose model is to be kept runs again where it is not.

    Args:
        retime_below: time again what has fewer samples than this and than its job asks for, where
            so many fit MAX_SECONDS_PER_POINT by the times that are recorded.

    Raises:
        ValueError: unknown scale, or no such device.
        StoreError: a row cannot be written; what was recorded before stays.
    """
    if scale not in SCALES:
        raise ValueError(f"unknown scale {scale!r}: use {', '.join(SCALES)}")
    device_type = resolve_device(device).type
    if why_not := store.writable(store.data_folder()):
        raise store.StoreError(why_not)

    def finished() -> dict[str, store.Row]:
        return {
            row["run_id"]: row
            for row in store.read_rows(experiment.name)
            if row["outcome"] != "interrupted"
            and row["provenance"]["device"].split(":")[0] == device_type
        }

    def done() -> set[str]:
        return set(finished())

    for job in (on_device(job, device_type) for job in experiment.jobs(scale)):
        if stop():
            return
        if isinstance(job, CostJob):
            rows = finished()
            runs = [rows.get(identity(config, cost=True)) for config in job.configs]
            if all(runs) and not _too_few_samples(runs, min(retime_below, job.n_repeats)):
                continue
            yield from _stored(run_cost(experiment.name, scale, job, device, stop))
            continue
        if not _to_run(job, done()):
            continue
        if why_not := missing_images(job.config):
            warnings.warn(f"{job.config.model.attention} is left out: {why_not}", stacklevel=2)
            continue
        with store.claimed(run_ids(job)[0]) as ours:
            # What another process has finished since is not run again.
            seeds = _to_run(job, done()) if ours else ()
            if seeds and isinstance(job, TrainingJob):
                row = run_training(experiment.name, scale, job, device, stop, on_metrics)
                yield from _stored([row])
            elif seeds:
                job = replace(job, seeds=seeds)
                rows = run_retrieval(experiment.name, scale, job, device, stop, on_metrics)
                yield from _stored(rows)


def _too_few_samples(rows: Sequence[store.Row], least: int) -> bool:
    """Whether points that are timed together lack samples that there is time for."""
    samples = [row["summary"]["time_ms_samples"] for row in rows if row["outcome"] == "ok"]
    if all(len(some) >= least for some in samples):
        return False
    round_s = sum(max(some) for some in samples) / 1000
    return (1 + least) * round_s <= MAX_SECONDS_PER_POINT * len(samples)  # one warms up


def _to_run(job: TrainingJob | RetrievalJob, done: set[str]) -> tuple[int, ...]:
    """The seeds of a job that have no finished row, or whose model is to be kept and is not."""
    seeds = (job.seed,) if isinstance(job, TrainingJob) else job.seeds
    keep = isinstance(job, TrainingJob) and job.keep
    return tuple(
        seed
        for seed, run in zip(seeds, run_ids(job), strict=True)
        if run not in done or (keep and drawing.kept_run(job.config.model) != run)
    )


def _stored(rows: Iterable[store.Row]) -> Iterator[store.Row]:
    """Rows, each once it is in `data/` and its checkpoint is gone."""
    for row in rows:
        store.append(row["experiment"], row)
        discard_checkpoint(row)
        yield row


def missing_images(config: Config) -> str | None:
    """Why the images that a run is trained on cannot be read; None where they can."""
    if isinstance(getattr(config, "task", None), Pixels):
        try:
            load_images(config.task.images)
        except ValueError as error:
            return str(error)
    return None


def source_of(config: Config, *, cost: bool) -> str:
    """The hash of the code that computes a run, or the cost of a config."""
    if isinstance(config, RetrievalConfig):
        sources = (*RETRIEVAL_SOURCES, *RULE_SOURCES[config.model.update_rule])
        watched = isinstance(config, MeansConfig)
        return store.source_hash(*sources, *["replib.evaluation"] * watched)
    sources = COST_SOURCES if cost else ()
    if isinstance(config, TrainingConfig):
        sources += (*TRAINING_SOURCES, *config.task.sources)
    if isinstance(config, AutopsyConfig):
        sources += ("replib.autopsy",)
    if isinstance(config, GenerationConfig):
        sources += GENERATION_SOURCES
    mechanism = ATTENTION[getattr(config, "model", config).attention]
    own = ("replib.attention.base", mechanism.__module__, *mechanism.sources)
    return store.source_hash(*sources, *own, without=MEMORY_KERNELS)


def identity(config: Config, seed: int = 0, *, cost: bool) -> str:
    """The run_id of a run, or of the cost of a config, under the present code."""
    return store.run_id(config, seed, source_of(config, cost=cost))


def run_ids(job: Job) -> list[str]:
    """The identities of the rows that a job yields."""
    if isinstance(job, TrainingJob):
        return [identity(job.config, job.seed, cost=False)]
    if isinstance(job, RetrievalJob):
        return [identity(job.config, seed, cost=False) for seed in job.seeds]
    return [identity(config, cost=True) for config in job.configs]


def run_training(
    name: str,
    scale: str,
    job: TrainingJob,
    device: str | None,
    stop: Callable[[], bool],
    on_metrics: Callable[[TrainingJob, Metrics], None] = lambda job, metrics: None,
    on_start: Callable[[Training], None] = lambda training: None,
) -> store.Row:
    """Train, from a checkpoint where there is one, and make the row; nothing is appended."""
    started = datetime.now(UTC)
    training = job.config.training(seed=job.seed, device=device)
    checkpoint = checkpoint_path(identity(job.config, job.seed, cost=False), training.device.type)
    if checkpoint.exists():
        training.load(checkpoint)
    on_start(training)
    outcome, detail, saved = "interrupted", None, perf_counter()
    try:
        for metrics in training.metrics(stop):
            on_metrics(job, metrics)
            outcome = metrics.outcome or "interrupted"
            if perf_counter() - saved > CHECKPOINT_EVERY_S or metrics.outcome == "interrupted":
                _save_checkpoint(training, checkpoint)
                saved = perf_counter()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        release_memory(training.device)
        outcome = "out_of_memory"
        detail = f"{str(error).splitlines()[0]}: lower batch_size, seq_len or d_model"
    row = training_row(name, scale, job, training, outcome, detail=detail, started=started)
    if job.keep and outcome == "ok":
        drawing.keep_model(training, row)
    return row


def training_row(
    name: str,
    scale: str,
    job: TrainingJob,
    training: Training,
    outcome: str,
    *,
    detail: str | None = None,
    started: datetime | None = None,
) -> store.Row:
    """The row of a run as it stands."""
    history = list(training.history)
    summary = training_summary(history)
    if isinstance(job.config.task, Pixels):
        summary |= pixel_summary(job.config.task, history)
    return store.make_row(
        name,
        scale,
        job.config,
        job.seed,
        outcome,
        summary,
        curve={key: [getattr(m, key) for m in history] for key in CURVE},
        detail=detail,
        device=str(training.device),
        source=source_of(job.config, cost=False),
        started=started,
    )


def run_retrieval(
    name: str,
    scale: str,
    job: RetrievalJob,
    device: str | None,
    stop: Callable[[], bool],
    on_metrics: Callable[[RetrievalJob, RetrievalMetrics], None] = lambda job, metrics: None,
    on_start: Callable[[RetrievalTraining], None] = lambda training: None,
) -> Iterator[store.Row]:
    """Train the seeds of a job together, from a checkpoint where there is one, and make their rows;
    nothing is appended. The checkpoint goes when all rows were taken."""
    started, began = datetime.now(UTC), perf_counter()
    kind = MeansTraining if isinstance(job.config, MeansConfig) else RetrievalTraining
    training = kind(job.config, seeds=job.seeds, device=device)
    source, device_type = source_of(job.config, cost=False), training.device.type
    batch = store.run_id({"config": job.config, "seeds": list(job.seeds)}, 0, source)
    checkpoint = checkpoint_path(batch, device_type)
    if checkpoint.exists():
        training.load(checkpoint)
    on_start(training)
    outcomes, details, saved = ["interrupted"] * len(job.seeds), None, perf_counter()
    try:
        for metrics in training.metrics(stop):
            on_metrics(job, metrics)
            outcomes = [outcome or "interrupted" for outcome in metrics.outcomes]
            interrupted = metrics.outcome == "interrupted"
            if perf_counter() - saved > CHECKPOINT_EVERY_S or interrupted:
                _save_checkpoint(training, checkpoint)
                saved = perf_counter()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        release_memory(training.device)
        outcomes = ["out_of_memory"] * len(job.seeds)
        details = f"{str(error).splitlines()[0]}: lower batch_size or n_keys"
    for seed, outcome in zip(training.seeds, outcomes, strict=True):
        yield retrieval_row(
            name,
            scale,
            job,
            training,
            seed.seed,
            outcome,
            detail=details,
            seconds=perf_counter() - began,
            started=started,
        )
    if "interrupted" not in outcomes:
        with suppress(OSError):  # one that stays is harmless
            checkpoint.unlink(missing_ok=True)


def retrieval_row(
    name: str,
    scale: str,
    job: RetrievalJob,
    training: RetrievalTraining,
    seed: int,
    outcome: str,
    *,
    detail: str | None = None,
    seconds: float,
    started: datetime | None = None,
) -> store.Row:
    """The row of one seed of a run as it stands."""
    run = next(one for one in training.seeds if one.seed == seed)
    more: dict[str, Any] = {"seconds": seconds, "seeds_together": len(job.seeds)}
    if isinstance(training, MeansTraining):
        more |= training.best_means(seed)
    return store.make_row(
        name,
        scale,
        job.config,
        seed,
        outcome,
        run.summary(job.config) | more,
        curve={"step": list(run.steps), "loss": list(run.losses)},
        detail=detail,
        device=str(training.device),
        source=source_of(job.config, cost=False),
        started=started,
    )


CURVE = ("step", "train_loss", "loss", "accuracy")


def training_summary(history: list[Metrics]) -> dict:
    """The figures of a run: losses in nats a token, accuracies as shares of tokens."""
    if not history:
        return {"n_steps": 0}
    last = history[-1]
    solved = [m.step for m in history if m.accuracy >= SOLVED_ACCURACY]
    return {
        "n_steps": last.step,
        "final_loss": last.loss,
        "final_accuracy": last.accuracy,
        "best_loss": min(m.loss for m in history),
        "steps_to_solved": solved[0] if solved else None,
        "n_spikes": count_spikes([m.loss for m in history]),
        "steps_per_s": last.steps_per_s,
    }


def pixel_summary(task: Pixels, history: list[Metrics]) -> dict:
    """Bits per dimension of the test images: of the model, and of the histogram of each position,
    which a model that learned anything of images is below."""
    histogram = histogram_bits(load_images(task.images), task.n_levels)
    last = bits(history[-1].loss) if history else None
    return {"bits_per_dim": last, "histogram_bits_per_dim": histogram}


def run_cost(
    name: str,
    scale: str,
    job: CostJob,
    device: str | None,
    stop: Callable[[], bool],
    max_seconds_per_point: float = MAX_SECONDS_PER_POINT,
    on_partial: Callable[[store.Row], None] = lambda row: None,
) -> Iterator[store.Row]:
    """Measure the points of a job together and make their rows; nothing is appended.

    `on_partial` is told of a stream on its way, as if it were stopped now.
    """
    started = datetime.now(UTC)

    def row_of(cost: Cost) -> store.Row:
        return store.make_row(
            name,
            scale,
            cost.config,
            0,
            cost.outcome,
            cost.summary(),
            curve=getattr(cost, "curve", None),
            detail=cost.detail,
            device=str(resolve_device(device)),
            source=source_of(cost.config, cost=True),
            started=started,
        )

    measure, options = measure_cost, {}
    if is_generation(job):
        measure = measure_generation
        options = {"on_partial": lambda cost: on_partial(row_of(cost))}
    for cost in measure(
        job.configs,
        n_repeats=job.n_repeats,
        device=device,
        stop=stop,
        max_seconds_per_point=max_seconds_per_point,
        **options,
    ):
        yield row_of(cost)


def checkpoint_path(run: str, device_type: str) -> Path:
    """Where a run of a kind of device is checkpointed: generators do not move between kinds."""
    return store.cache_folder() / "checkpoints" / device_type / f"{run}.pt"


def _save_checkpoint(training: Training | RetrievalTraining, path: Path) -> None:
    """Save a checkpoint; where that fails the run goes on and a warning says so."""
    try:
        training.save(path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        warnings.warn(
            f"no checkpoint was written, a stopped run starts anew ({error}): free space, or set "
            "REPLIB_CACHE to another folder",
            stacklevel=2,
        )


def discard_checkpoint(row: store.Row) -> None:
    """Drop the checkpoint of a run whose finished row has been stored."""
    if row["outcome"] != "interrupted":
        device_type = row["provenance"]["device"].split(":")[0]
        with suppress(OSError):  # one that stays is harmless
            checkpoint_path(row["run_id"], device_type).unlink(missing_ok=True)
