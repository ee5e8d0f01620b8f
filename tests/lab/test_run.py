"""What a job runs on, and the identity of its runs."""

from dataclasses import replace

import pytest
from choices import CAUSAL
from small import cost_job, tiny, variants_of

from replib import models
from replib.attention import ATTENTION
from replib.claims.common import VARIANTS
from replib.fast_weights import UPDATE_RULES, VERSIONS, MemoryConfig, RetrievalConfig
from replib.lab import timing
from replib.lab.run import identity, uses_compiled, words_of
from replib.lab.runs.generation import GenerationConfig
from replib.lab.store import plain
from replib.lab.timing import CostConfig
from replib.tasks import SequenceCopy


@pytest.mark.parametrize("device_type, compiled", [("cpu", "cpu"), ("cuda", "cuda")])
def test_a_device_measures_the_portable_variants_and_the_kernel_compiled_for_it(
    packages, recwarn, device_type, compiled
):
    packages("numba", "triton")
    kept = variants_of(cost_job(variants=VARIANTS).on_device(device_type))
    assert kept == [v for v in VARIANTS if v[1] not in ("cpu", "cuda") or v[1] == compiled]
    assert len(kept) == 5 and not recwarn.list


@pytest.mark.parametrize("device_type, package", [("cpu", "numba"), ("cuda", "triton")])
def test_a_kernel_whose_package_is_missing_is_left_out_with_a_warning_that_says_so(
    packages, device_type, package
):
    packages()
    with pytest.warns(UserWarning, match=f"linear {device_type} is left out.*install {package}"):
        kept = variants_of(cost_job(variants=VARIANTS).on_device(device_type))
    assert kept == [v for v in VARIANTS if v[1] not in ("cpu", "cuda")]


def test_a_training_job_is_the_same_on_every_device():
    assert tiny().on_device("cuda") == tiny()


def test_what_runs_on_a_compiled_kernel_is_known_beforehand(packages):
    packages("numba")
    by_name = dict(zip((i for _, i in VARIANTS), cost_job(variants=VARIANTS).configs, strict=True))
    used = {name for name, config in by_name.items() if uses_compiled(config, "cpu")}
    assert used == {"cpu"}
    assert uses_compiled(tiny().config, "cpu")  # without a name it takes the fastest
    assert not uses_compiled(tiny(attention="softmax").config, "cpu")
    packages()
    assert not uses_compiled(tiny().config, "cpu")


def test_a_run_is_named_after_its_config_and_seed():
    config = tiny().config
    changed = [
        identity(config, 0, cost=False),
        identity(config, 1, cost=False),
        identity(replace(config, lr=1e-3), 0, cost=False),
        identity(replace(config, task=SequenceCopy(seq_len=16)), 0, cost=False),
        identity(replace(config, model=replace(config.model, n_layers=1)), 0, cost=False),
        identity(config, 0, cost=True),  # the cost of a step of it is another thing
    ]
    assert len(set(changed)) == len(changed)
    assert identity(tiny().config, 0, cost=False) == changed[0]


@pytest.mark.parametrize("attention", ATTENTION)
def test_a_run_is_named_after_the_versions_of_its_parts(monkeypatch, attention):
    trained, timed = (
        tiny(attention=attention).config,
        CostConfig(attention=attention, causal=attention in CAUSAL),
    )

    def renamed():
        found = (
            identity(trained, cost=False),
            identity(trained, cost=True),
            identity(timed, cost=True),
        )
        return [one != other for one, other in zip(found, before, strict=True)]

    before = identity(trained, cost=False), identity(trained, cost=True), identity(timed, cost=True)
    mechanism = ATTENTION[attention]
    other = ATTENTION["linear" if attention == "softmax" else "softmax"]
    fastest = mechanism.kernels[-1] if mechanism.kernels else None
    for owner, name, value, expected in (
        (other, "VERSION", 2, [False, False, False]),
        (mechanism, "VERSION", 2, [True, True, True]),
        (mechanism, "SPEED", {fastest: 2}, [False, True, True]),
        (type(trained.task), "VERSION", 2, [True, True, False]),
        (models, "VERSION", 2, [True, True, False]),
        (timing, "VERSION", 2, [False, True, True]),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, value)
            assert renamed() == expected, (owner, name)


def test_the_speed_of_another_kernel_leaves_a_timing_what_it_was(monkeypatch):
    timed = CostConfig(attention="linear", kernel="torch")
    before = identity(timed, cost=True)
    monkeypatch.setattr(ATTENTION["linear"], "SPEED", {"cuda": 2})
    assert identity(timed, cost=True) == before
    monkeypatch.setattr(ATTENTION["linear"], "SPEED", {"torch": 2})
    assert identity(timed, cost=True) != before


@pytest.mark.parametrize("rule", UPDATE_RULES)
def test_a_memory_is_named_after_the_version_of_its_rule(monkeypatch, rule):
    configs = [RetrievalConfig(model=MemoryConfig(update_rule=one)) for one in UPDATE_RULES]
    before = [identity(config, cost=False) for config in configs]
    monkeypatch.setitem(VERSIONS, rule, 2)
    after = [identity(config, cost=False) for config in configs]
    renamed = {
        config.model.update_rule
        for config, old, new in zip(configs, before, after, strict=True)
        if old != new
    }
    assert renamed == {rule}


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (tiny().config, "linear, N = 16, batch 4, 20 steps, seed 3"),
        (CostConfig(kernel="torch"), "linear torch, N = 1024, batch 1, forward and backward"),
        (RetrievalConfig(), "linear, sum, S = 20, D = 64, seed 3"),
        (GenerationConfig(), "recurrent, token, N = 784, batch 1, 8 layers, 8 heads of 32"),
    ],
)
def test_a_run_is_told_by_what_its_config_has(config, told):
    assert words_of({"kind": config.kind, "config": plain(config), "seed": 3}) == told
