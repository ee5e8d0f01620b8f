"""The published mean of an evaluation's losses, and the mean over all keys, of the same losses.

P seeds, B sequences, L queries, S keys.
"""

from dataclasses import fields

import numpy as np
import pytest
import torch

from replib.attention.performer import PerformerAttention
from replib.claims import EXPERIMENTS
from replib.claims.capacity import judge
from replib.claims.capacity.evaluation import MeansConfig, MeansTraining, means_of
from replib.claims.capacity.grid import retrieval_config
from replib.fast_weights import (
    AssociativeMemory,
    MemoryConfig,
    RetrievalConfig,
    RetrievalTraining,
    query_losses,
    retrieval_loss,
    stacked,
)
from replib.lab import store
from replib.lab.record import Experiment, record
from replib.lab.run import RetrievalJob, identity
from replib.published import published
from replib.tasks import AssociativeRetrieval


def small(kind=RetrievalConfig, memory=None, n_keys=11, **changes):
    """A run of a few steps, with queries in batches of 4 of which the last has fewer."""
    options = {"n_steps": 20, "eval_every": 5, "eval_sequences": 3, "batch_size": 4}
    memory = memory or MemoryConfig(attention="linear", head_dim=4)
    return kind(
        task=AssociativeRetrieval(n_keys=n_keys), model=memory, **(options | {"lr": 1e-2} | changes)
    )


def test_the_published_mean_is_of_batches_whose_last_counts_as_much():
    losses = np.random.default_rng(0).random((2, 3, 11))
    for n_queries in (11, 7):
        asked, starts = losses[..., :n_queries], range(0, n_queries, 4)
        of_batches = np.mean([asked[..., i : i + 4].mean(2) for i in starts], axis=0)  # (P, B)
        expected = [x.mean((1, 2)) for x in (losses, asked)] + [of_batches.mean(1)]
        found = means_of(torch.from_numpy(losses), n_queries, 4)
        torch.testing.assert_close(found, torch.from_numpy(np.stack(expected, axis=1)))


def test_means_where_keys_come_back_are_refused():
    task = AssociativeRetrieval(n_keys=4, with_replacement=True)
    with pytest.raises(ValueError, match="with_replacement=False"):
        MeansConfig(task=task)


def test_losses_of_queries_are_those_whose_mean_is_trained_on():
    task = AssociativeRetrieval(n_keys=9)
    batch = stacked([task.sample_all_queries(5, 9, torch.Generator().manual_seed(0))])
    memory = AssociativeMemory(MemoryConfig(head_dim=4), n_keys=9, seeds=(0,))
    with torch.no_grad():
        reads = memory(batch)
    units = torch.nn.functional.one_hot(batch.targets, 9)
    losses = query_losses(reads, batch)
    expected = (reads - units).square().sum(-1) / 2
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-6)
    trained_on = retrieval_loss(reads, batch)
    torch.testing.assert_close(means_of(losses, 9, 4)[:, 1], trained_on, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "memory",
    [
        MemoryConfig(attention="linear", head_dim=4),
        MemoryConfig(
            attention="performer", options=PerformerAttention.Options(n_directions=64), head_dim=4
        ),
    ],
)
def test_a_watched_run_is_the_run_that_nobody_watches(memory):
    seeds = (0, 3)
    plain = RetrievalTraining(small(memory=memory, eval_queries=7), seeds=seeds, device="cpu")
    watched = MeansTraining(small(MeansConfig, memory, eval_queries=7), seeds=seeds, device="cpu")
    for one, other in zip(plain.metrics(), watched.metrics(), strict=True):
        assert one.losses == pytest.approx(other.losses, rel=1e-5)
    for seed in watched.seeds:
        _, asked, batches = zip(*watched.means[seed.seed], strict=True)
        assert asked == pytest.approx(seed.losses) and batches != asked
        best = watched.summary(seed.seed)
        assert best["best_asked_loss"] == pytest.approx(seed.best)
        assert best["best_batches_loss"] == min(batches)


def test_a_stopped_run_keeps_the_means_of_before(tmp_path):
    config = small(MeansConfig)
    whole = MeansTraining(config, seeds=(0, 1), device="cpu")
    list(whole.metrics())
    half = MeansTraining(config, seeds=(0, 1), device="cpu")
    steps = iter(range(10))
    list(half.metrics(stop=lambda: next(steps, None) is None))
    half.save(tmp_path / "run.pt")
    again = MeansTraining(config, seeds=(0, 1), device="cpu")
    again.load(tmp_path / "run.pt")
    list(again.metrics())
    assert again.means == whole.means and len(whole.means[0]) == 4


def test_rows_of_watched_runs_hold_their_means_under_a_name_of_their_own(data):
    config = small(MeansConfig)
    job = RetrievalJob(config=config, seeds=(0, 1))
    experiment = Experiment(name="evaluation", title="", jobs=lambda scale: [job])
    rows = list(record(experiment, "laptop", device="cpu"))
    for row in rows:
        told = row["summary"]
        assert told["best_asked_loss"] == pytest.approx(told["best_loss"])
        assert {"best_all_keys_loss", "best_batches_loss", "seconds"} <= told.keys()
    plain = small()
    assert identity(config, cost=False) != identity(plain, cost=False)
    assert store.read_rows("evaluation") == rows and not list(record(experiment, "laptop"))


def test_what_is_watched_are_the_published_losses_that_no_mean_over_all_keys_can_have():
    logs = published()["fastweights_logs"]
    jobs, watched = EXPERIMENTS["evaluation"].jobs("laptop"), set()
    for job in jobs:
        memory, n_keys = job.config.model, job.config.task.n_keys
        watched.add((memory.published_name, n_keys))
        assert judge.MEMORIES[memory.published_name] == memory
        published_run = retrieval_config(n_keys, memory)
        for one in fields(RetrievalConfig):
            assert getattr(job.config, one.name) == getattr(published_run, one.name)
        assert len(job.seeds) >= judge.MIN_SEEDS
    below = judge.impossible_losses(logs)
    assert {(name, n_keys) for name, n_keys, *_ in below} == watched and len(jobs) == len(below)
