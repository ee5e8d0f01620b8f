"""The controls of a notebook become the jobs that they say."""

import subprocess
import sys

import pytest
import torch

from replib.attention import ATTENTION, causal_names
from replib.claims.convergence.page import live_jobs as live_copy_jobs
from replib.claims.cost_page import ALL_VARIANTS, refused_variants
from replib.claims.cost_page import live_jobs as live_cost_jobs
from replib.tasks import CausalCopy, SequenceCopy
from replib.training import TrainingConfig

COPY = {
    "task": "causal copy",
    "seq_len": 32,
    "batch_size": 8,
    "n_steps": 100,
    "n_layers": 1,
    "n_heads": 2,
    "head_dim": 8,
    "lr": 2e-3,
    "seeds": 2,
    "attention": ("softmax", "linear"),
}
COST = {
    "seq_len": 64,
    "shortest": 16,
    "batch_size": 2,
    "n_heads": 2,
    "head_dim": 8,
    "repeats": 3,
    "work": "forward",
    "variants": ("softmax fused", "linear torch"),
}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_what_no_device_here_can_run_is_refused_with_the_reason(packages):
    packages("numba")
    assert set(refused_variants()) == {"linear cuda", "relu cuda"}
    packages()
    refused = refused_variants()
    compiled = {f"{name} {kind}" for name in ("linear", "relu") for kind in ("cpu", "cuda")}
    assert set(refused) == {*compiled, "delta cpu"}
    assert "pip install numba" in refused["linear cpu"]


def test_a_point_that_the_device_cannot_run_is_refused_with_the_remedy():
    variants = ("softmax fused", "linear cuda")
    with pytest.raises(ValueError, match="linear cuda cannot run .*: kernel 'cuda' .*: use"):
        live_cost_jobs(COST | {"variants": variants, "device": "cpu"})


def test_controls_become_a_run_a_seed_and_mechanism():
    jobs = live_copy_jobs(COPY)
    asked = [(job.seed, job.config.model.attention) for job in jobs]
    assert asked == [(0, "softmax"), (0, "linear"), (1, "softmax"), (1, "linear")]
    config = jobs[0].config
    assert isinstance(config, TrainingConfig) and config.task == CausalCopy(seq_len=32)
    assert (config.batch_size, config.n_steps, config.lr) == (8, 100, 2e-3)
    assert (config.model.n_layers, config.model.n_heads, config.model.head_dim) == (1, 2, 8)
    other = live_copy_jobs(COPY | {"task": "encoder-decoder copy", "seeds": 1})
    assert other[0].config.task == SequenceCopy(seq_len=32)
    assert live_copy_jobs(COPY | {"attention": ()}) == []


def test_sizes_that_no_model_can_have_are_refused():
    with pytest.raises(ValueError, match="seq_len 4"):
        live_copy_jobs(COPY | {"seq_len": 4})
    with pytest.raises(ValueError, match="d_model 1 "):
        live_copy_jobs(COPY | {"n_heads": 1, "head_dim": 1})


def test_every_batch_has_as_many_tokens_also_where_a_sequence_is_longer_than_asked():
    for tokens, expected in ((256, 256), (16, 64)):
        jobs = live_cost_jobs(COST | {"tokens": tokens})
        assert {c.seq_len * c.batch_size for job in jobs for c in job.configs} == {expected}


def test_controls_become_a_job_a_length():
    jobs = live_cost_jobs(COST)
    assert [[c.seq_len for c in job.configs] for job in jobs] == [[16, 16], [32, 32], [64, 64]]
    assert {c.batch_size for job in jobs for c in job.configs} == {2}
    assert [c.variant for c in jobs[0].configs] == [
        ("softmax", "fused"),
        ("linear", "torch"),
    ]
    inverse = live_cost_jobs(COST | {"tokens": 64})
    assert [job.configs[0].batch_size for job in inverse] == [4, 2, 1]
    assert [j.configs[0].seq_len for j in live_cost_jobs(COST | {"shortest": 512})] == [64]


NEW_MECHANISM = """
from replib.attention import ATTENTION
from replib.attention.linear import LinearAttention

class Mean(LinearAttention):
    label, kernels = "Mean", ("slow", "quick")

ATTENTION["mean"] = Mean
from replib.claims.convergence.page import live_jobs as live_copy_jobs
from replib.claims.cost_page import ALL_VARIANTS, live_jobs as live_cost_jobs
assert ALL_VARIANTS["mean quick"] == ("mean", None, "quick")
jobs = live_cost_jobs(COST | {"variants": ("mean slow", "mean quick")})
assert [c.kernel for c in jobs[0].configs] == ["slow", "quick"]
assert live_copy_jobs(COPY | {"attention": ("mean",)})[0].config.model.attention == "mean"
"""


def test_one_line_in_the_registry_brings_a_mechanism_into_the_controls():
    # It stands in the registry when `experiments` is imported, so in a process of its own.
    program = f"COPY, COST = {COPY}, {COST}\n{NEW_MECHANISM}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_controls_offer_all_options_and_every_kernel_of_every_mechanism():
    causal = {name: ATTENTION[name] for name in causal_names()}
    expected = {(name, None, kernel) for name, cls in causal.items() for kernel in cls.kernels}
    for name, mechanism in causal.items():
        others = [o for o in mechanism.offered if not mechanism.kernels or o != mechanism.Options()]
        expected |= {(name, options, None) for options in others}
    assert set(ALL_VARIANTS.values()) == expected and len(ALL_VARIANTS) == len(expected)
