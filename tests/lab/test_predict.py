"""How long jobs take, predicted from a few small calls, beside how long they take."""

import os
import time
from dataclasses import replace
from math import isnan

import pytest
import torch

from replib.claims.autopsy.defects import AutopsyConfig
from replib.claims.capacity.grid import retrieval_config
from replib.claims.common import laptop_copy
from replib.fast_weights import MemoryConfig, RetrievalTraining
from replib.lab import predict, timing
from replib.lab.memory_use import TIMING_LOCK
from replib.lab.predict import Part, Use, seconds
from replib.lab.run import CostJob, RetrievalJob, TrainingJob
from replib.lab.runs import generation
from replib.lab.runs.generation import GenerationConfig
from replib.lab.timing import CostConfig
from replib.tasks import SequenceCopy
from replib.tasks.images import Pixels

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch):
    monkeypatch.setattr(predict, "_parts", {})


class Machine:
    """Calls whose time is c0 + b (c1 n + c2 n²) by a clock of its own."""

    def __init__(self, monkeypatch, c0, c1, c2):
        self.now_s, self.costs, self.sizes = 0.0, (c0, c1, c2), []
        monkeypatch.setattr(predict, "perf_counter", lambda: self.now_s)
        monkeypatch.setattr(timing, "perf_counter", lambda: self.now_s)

    def seconds(self, n, b):
        c0, c1, c2 = self.costs
        return c0 + b * (c1 * n + c2 * n * n)

    def build(self, n, b):
        self.sizes.append((n, b))

        def call():
            self.now_s += self.seconds(n, b)

        return call

    def use(self, n, b):
        return Use("key", self.build, (32, 1), (n, b), lambda part, size: part.at(*size))


COSTS = [(1e-3, 0, 0), (1e-3, 1e-6, 0), (1e-4, 0, 1e-9), (1e-3, 1e-6, 1e-9)]


@pytest.mark.parametrize("costs", COSTS)
@pytest.mark.parametrize("size", [(32, 1), (100, 7), (1024, 8), (16384, 32)])
def test_a_call_is_predicted_from_smaller_ones_in_time(monkeypatch, costs, size):
    machine, part = Machine(monkeypatch, *costs), Part()
    part.measure(machine.use(*size), predict.BUDGET_S, CPU)
    assert part.at(*size) == pytest.approx(machine.seconds(*size), rel=0.02)
    assert machine.now_s <= predict.BUDGET_S + 6 * machine.seconds(32, 1)
    assert machine.sizes[0] == (32, 1) and all(n <= size[0] for n, _ in machine.sizes)


def test_a_size_that_has_been_passed_is_a_look_up(monkeypatch):
    machine, part = Machine(monkeypatch, 1e-3, 1e-6, 1e-9), Part()
    part.measure(machine.use(512, 4), predict.BUDGET_S, CPU)
    before = len(machine.sizes)
    assert part.covers(512, 4) and part.covers(100, 2) and not part.covers(512, 5)
    assert part.covers(1024, 4) and not part.covers(1025, 4)  # twice what was measured, at most
    assert part.at(1024, 4) == pytest.approx(machine.seconds(1024, 4), rel=0.1)
    assert part.at(100, 2) == pytest.approx(machine.seconds(100, 2), rel=0.05)
    part.measure(machine.use(2048, 4), predict.BUDGET_S, CPU)
    assert len(machine.sizes) - before <= 2 and machine.sizes[-1][0] > 512


def test_all_positions_are_the_sum_of_each(monkeypatch):
    machine, part = Machine(monkeypatch, 1e-3, 1e-6, 1e-9), Part()
    part.measure(machine.use(1000, 2), 10.0, CPU)
    expected = sum(machine.seconds(n, 2) for n in range(1, 1001))
    assert part.up_to(1000, 2) == pytest.approx(expected, rel=0.01)


def test_a_part_that_has_not_been_called_is_not_a_number():
    assert isnan(Part().at(8, 8))


def job(n_steps=100, **changes):
    return TrainingJob(config=laptop_copy("linear", 16, n_steps, **changes), seed=0)


def cost_job(*lengths, n_repeats=3):
    configs = tuple(CostConfig(seq_len=n, n_heads=2, head_dim=8) for n in lengths)
    return CostJob(configs=configs, n_repeats=n_repeats)


def test_predictions_add_up_and_grow_with_the_steps_and_repeats():
    short, long = seconds([job(100)], "cpu"), seconds([job(200)], "cpu")
    assert 1.5 * short < long < 2.5 * short
    assert seconds([job(100), job(200)], "cpu") == pytest.approx(short + long)
    assert seconds([], "cpu") == 0
    few, many = (seconds([cost_job(16, n_repeats=n)], "cpu") for n in (5, 20))
    assert many > 2 * few > 0


def test_nothing_is_measured_while_another_timing_runs(monkeypatch):
    monkeypatch.setattr(predict, "WAIT_S", 0.01)
    with TIMING_LOCK:
        assert isnan(seconds([job()], "cpu"))
        assert predict.needed_bytes([job()], "cpu") == 0
    known = seconds([job()], "cpu")
    with TIMING_LOCK:
        assert seconds([job()], "cpu") == known


def test_threads_are_those_of_the_job_and_left_as_they_were():
    before, seen = torch.get_num_threads(), []
    seconds([job()], "cpu", threads=lambda job: seen.append(job) or 1)
    assert seen and torch.get_num_threads() == before


def test_a_cost_that_would_not_fit_takes_no_time(monkeypatch):
    monkeypatch.setattr(timing, "available_memory_bytes", lambda device: 10**3)
    generated = CostJob(configs=(GenerationConfig(seq_len=16),), n_repeats=3)
    assert seconds([cost_job(64), generated], "cpu") == 0


@pytest.mark.parametrize(
    ("asked", "instead"),
    [
        (("linear", None), ("linear", "torch")),
        (("linear", "cpu"), ("linear", "torch")),
        (("linear", "plain"), ("linear", "plain")),
        (("dpfp", None), ("linear", "torch")),
        (("delta", None), ("delta", "torch")),
        (("softmax", None), ("softmax", None)),
    ],
)
def test_no_kernel_is_compiled_for_a_prediction(monkeypatch, asked, instead):
    monkeypatch.setattr(predict, "_compiled", lambda attention: attention == "softmax")
    config = CostConfig(attention=asked[0], kernel=asked[1])
    found = predict.ready(config, CPU)
    assert (found.attention, found.kernel) == instead
    assert predict.ready(config, torch.device("cuda")) == config


def test_every_kind_of_job_has_a_prediction():
    task = SequenceCopy(seq_len=8)
    defects = AutopsyConfig(
        task=task, model=laptop_copy("linear", 16, 9).model, batch_size=4, defects=("unfused",)
    )
    jobs = [
        TrainingJob(config=laptop_copy("softmax", 16, 9, task=task), seed=0),
        TrainingJob(config=laptop_copy("linear", 16, 9, task=Pixels(), batch_size=2), seed=0),
        TrainingJob(config=defects, seed=0),
        CostJob(configs=(defects,), n_repeats=2),
        RetrievalJob(config=retrieval_config(20, MemoryConfig(head_dim=8)), seeds=(0, 1)),
    ]
    jobs += [
        CostJob(
            configs=(GenerationConfig(way=way, span=span, seq_len=16, n_layers=1, n_heads=2),),
            n_repeats=2,
        )
        for way in generation.WAYS
        for span in generation.SPANS
    ]
    for one in jobs:
        assert 0 < seconds([one], "cpu") < float("inf"), one
    assert predict.needed_bytes(jobs, "cpu") > 10**5


def measured(job):
    """What a job takes, its trainings by 40 steps or, of memories, one evaluation."""
    started = time.perf_counter()
    if isinstance(job, TrainingJob):
        training = job.config.training(device="cpu")
        for m in training.metrics():
            last = m
        return job.config.n_steps / last.steps_per_s
    if isinstance(job, RetrievalJob):
        training = RetrievalTraining(job.config, seeds=job.seeds, device="cpu")
        training.train_step()
        started = time.perf_counter()
        for _ in training.metrics():
            pass
        return time.perf_counter() - started
    kind = type(job.configs[0])
    measure = timing.measure_cost if kind is CostConfig else generation.measure_generation
    list(measure(job.configs, n_repeats=job.n_repeats, device="cpu"))
    return time.perf_counter() - started


def trained(attention, n, n_steps=60, **changes):
    return TrainingJob(config=laptop_copy(attention, n, n_steps, **changes), seed=0)


def costs(attention, kernel, n, n_repeats=15):
    config = CostConfig(attention=attention, kernel=kernel, seq_len=n, batch_size=4)
    return CostJob(configs=(config,), n_repeats=n_repeats)


def generated(way, n):
    return CostJob(configs=(GenerationConfig(way=way, seq_len=n, n_layers=4),), n_repeats=20)


SETTINGS = {
    "copy, softmax, N = 64": trained("softmax", 64),
    "copy, linear, N = 128": trained("linear", 128),
    "copy, linear, model of 256": trained(
        "linear", 32, 20, model=replace(laptop_copy("linear", 32, 20).model, d_model=256)
    ),
    "copy, LSH, N = 64": trained("lsh", 64),
    "textbook softmax, N = 1024": costs("softmax", "textbook", 1024),
    "fused softmax, N = 2048": costs("softmax", "fused", 2048),
    "linear torch, N = 2048": costs("linear", "torch", 2048),
    "token from a state": generated("recurrent", 512),
    "token from a cache": generated("cache", 2048),
    "memories, S = 60": RetrievalJob(
        config=retrieval_config(60, MemoryConfig(), n_steps=100, eval_every=50), seeds=(0, 1, 2)
    ),
}


@pytest.mark.slow
def test_predictions_are_near_what_is_measured():
    """On a quiet machine (REPLIB_QUIET=1) within a factor of 1.5, of ten settings in nine."""
    factor = 1.5 if os.environ.get("REPLIB_QUIET") else 10
    ratios = {}
    for name, one in SETTINGS.items():
        predicted = seconds([one], "cpu")
        found = measured(one)
        ratios[name] = predicted / found
        print(f"{name}: predicted {predicted:.3g} s, measured {found:.3g} s, {ratios[name]:.2f}")
    near = [name for name, ratio in ratios.items() if 1 / factor <= ratio <= factor]
    assert len(near) >= 9, ratios
