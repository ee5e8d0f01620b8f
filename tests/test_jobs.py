"""What a job runs on, and the identity of its runs."""

from dataclasses import replace
from pathlib import Path

import pytest
from small import cost_job, tiny, variants_of

from replib import experiments, store
from replib.attention import ATTENTION
from replib.benchmark import CostConfig
from replib.experiments import VARIANTS
from replib.jobs import identity, on_device, source_of, uses_compiled
from replib.retrieval import MemoryConfig, RetrievalConfig
from replib.tasks import SequenceCopy


@pytest.mark.parametrize("device_type, compiled", [("cpu", "cpu"), ("cuda", "cuda")])
def test_a_device_measures_the_portable_variants_and_the_kernel_compiled_for_it(
    packages, recwarn, device_type, compiled
):
    packages("numba", "triton")
    kept = variants_of(on_device(cost_job(variants=VARIANTS), device_type))
    assert kept == [v for v in VARIANTS if v[1] not in ("cpu", "cuda") or v[1] == compiled]
    assert len(kept) == 5 and not recwarn.list


@pytest.mark.parametrize("device_type, package", [("cpu", "numba"), ("cuda", "triton")])
def test_a_kernel_whose_package_is_missing_is_left_out_with_a_warning_that_says_so(
    packages, device_type, package
):
    packages()
    with pytest.warns(UserWarning, match=f"linear {device_type} is left out.*install {package}"):
        kept = variants_of(on_device(cost_job(variants=VARIANTS), device_type))
    assert kept == [v for v in VARIANTS if v[1] not in ("cpu", "cuda")]


def test_a_training_job_is_the_same_on_every_device():
    assert on_device(tiny(), "cuda") == tiny()


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
def test_a_run_is_named_after_the_sources_that_compute_it(monkeypatch, attention):
    asked = []
    monkeypatch.setattr(store, "source_hash", lambda *modules, without: asked.extend(modules) or "")
    identity(tiny(attention=attention).config, cost=False)
    others = {f"replib.attention.{name}" for name in ATTENTION if name != attention}
    others -= set(ATTENTION[attention].sources)
    assert f"replib.attention.{attention}" in asked and not others & set(asked)
    assert {"replib.tasks", "replib.models", "replib.training"} <= set(asked)
    assert "replib.benchmark" not in asked
    asked.clear()
    identity(CostConfig(attention=attention), cost=True)
    assert "replib.benchmark" in asked and "replib.training" not in asked


# Modules of `replib.kernels` that compute a run of associative retrieval by each rule.
KERNELS_OF_RULES = {
    "sum": {"memory_cpu"},
    "delta": {"memory_cpu", "delta"},
    "fwm": {"fwm", "fwm_cpu", "cpu", "vectors"},
}


@pytest.fixture
def renamed_by(monkeypatch):
    """Whether a change of a module's code renames a run."""

    def renamed(config, module):
        before = source_of(config, cost=False)
        known = store._file_hash

        def changed(name, path):
            return "new" if name == module else known(name, path)

        with monkeypatch.context() as patch:
            patch.setattr(store, "_file_hash", changed)
            return source_of(config, cost=False) != before

    return renamed


@pytest.mark.parametrize("rule", KERNELS_OF_RULES)
def test_a_retrieval_run_is_named_after_the_kernels_of_its_rule(renamed_by, rule):
    config = RetrievalConfig(model=MemoryConfig(update_rule=rule))
    folder = Path(experiments.__file__).parent / "kernels"
    kernels = {path.stem for path in folder.glob("*.py")}
    found = {name for name in kernels if renamed_by(config, f"replib.kernels.{name}")}
    assert found == KERNELS_OF_RULES[rule]
    for name in ("tasks", "retrieval", "attention.feature_maps"):
        assert renamed_by(config, f"replib.{name}")


@pytest.mark.parametrize("attention", ["linear", "delta"])
def test_kernels_of_memories_that_are_read_once_do_not_rename_runs_of_attention(
    renamed_by, attention
):
    config = tiny(attention=attention).config
    for name in ("fwm", "fwm_cpu", "memory_cpu"):
        assert not renamed_by(config, f"replib.kernels.{name}")
    for name in ("cpu", "cuda", "delta", "delta_cpu", "torch_chunked", "vectors"):
        assert renamed_by(config, f"replib.kernels.{name}")
