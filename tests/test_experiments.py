"""The named experiments: what they are made of, and that recording loses and repeats nothing."""

import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from replib import experiments, kernels, store
from replib.attention import ATTENTION
from replib.autopsy import article_defects, loss_defects
from replib.benchmark import CostConfig
from replib.experiments import EXPERIMENTS, SCALES, VARIANTS, Experiment, laptop_copy
from replib.jobs import (
    CostJob,
    TrainingJob,
    configs_of,
    identity,
    on_device,
    run_ids,
    source_of,
    uses_compiled,
)
from replib.live_jobs import ALL_VARIANTS, live_copy_jobs, live_cost_jobs, refused_variants
from replib.recording import checkpoint_path, record, recorded_rows, training_summary
from replib.retrieval import MemoryConfig, RetrievalConfig
from replib.streams import SPANS, WAYS
from replib.tasks import CausalCopy, SequenceCopy
from replib.training import Metrics, Training, TrainingConfig

GRIDS = [(name, scale) for name in EXPERIMENTS for scale in SCALES]
RETRIEVAL = ("capacity", "update_rules")


def tiny(seed=0, n_steps=20, attention="linear", **changes):
    options = {"eval_every": 5, "eval_batches": 1, "batch_size": 4}
    return TrainingJob(config=laptop_copy(attention, 16, n_steps, **options | changes), seed=seed)


def experiment_of(*jobs):
    return Experiment(name="tiny", title="for tests", jobs=lambda scale: list(jobs))


EVERYWHERE = (("softmax", "textbook"), ("softmax", "fused"), ("linear", "torch"))


def cost_job(n=16, variants=EVERYWHERE):
    configs = [
        CostConfig(attention=a, implementation=i, seq_len=n, n_heads=1, head_dim=4)
        for a, i in variants
    ]
    return CostJob(configs=tuple(configs), n_repeats=2)


@pytest.mark.parametrize("name, scale", GRIDS)
def test_no_run_of_a_grid_occurs_twice(name, scale):
    ids = [run for job in EXPERIMENTS[name].jobs(scale) for run in run_ids(job)]
    assert ids and len(ids) == len(set(ids))


# Grids whose points are not the same setting under softmax and under linear attention.
OF_THEIR_OWN = {"generation", "autopsy", "autopsy_time", "autopsy_longer", "evaluation", *RETRIEVAL}


@pytest.mark.parametrize("name, scale", [grid for grid in GRIDS if grid[0] not in OF_THEIR_OWN])
def test_every_point_of_a_grid_has_softmax_beside_linear(name, scale):
    found = {}
    for job in EXPERIMENTS[name].jobs(scale):
        for config in configs_of(job):
            model = getattr(config, "model", config)
            other = {k: v for k, v in asdict(config).items() if k != "model"}
            other |= {k: v for k, v in asdict(model).items()}
            del other["attention"], other["implementation"]
            point = (str(other), getattr(job, "seed", None))
            found.setdefault(point, set()).add(model.attention)
    assert all(names - {"lsh"} == {"softmax", "linear"} for names in found.values())


def grid(name, scale):
    """Sequence length -> seeds, for a training experiment."""
    seeds = {}
    for job in EXPERIMENTS[name].jobs(scale):
        seeds.setdefault((job.config.task.seq_len, job.config.model.attention), []).append(job.seed)
    return seeds


def test_recorded_convergence_has_five_seeds_at_three_lengths_or_more():
    seeds = grid("convergence", "laptop")
    assert len({n for n, _ in seeds}) >= 3
    for (n, attention), found in seeds.items():
        least = 5 if attention != "lsh" else 3 if n <= 32 else 1
        assert sorted(found) == list(range(least))


@pytest.mark.parametrize("scale", ["laptop", "paper"])
@pytest.mark.parametrize("name", ["convergence", "scaling"])
def test_lsh_is_recorded_by_itself_after_what_is_judged(name, scale):
    jobs = EXPERIMENTS[name].jobs(scale)
    variants = [[getattr(c, "model", c) for c in configs_of(job)] for job in jobs]
    is_lsh = [{model.attention for model in some} == {"lsh"} for some in variants]
    assert is_lsh == sorted(is_lsh) and any(is_lsh)
    first = is_lsh.index(True)
    assert "lsh" not in {model.attention for some in variants[:first] for model in some}
    rounds = {model.implementation for some in variants[first:] for model in some}
    assert rounds == {"4 rounds"} | ({"1 round", "8 rounds"} if name == "scaling" else set())


def test_lsh_has_the_settings_of_what_it_stands_beside():
    jobs = EXPERIMENTS["convergence"].jobs("laptop")
    settings = {}
    for job in jobs:
        model = replace(job.config.model, attention="linear", implementation=None)
        setting = replace(job.config, model=model)
        settings.setdefault(job.config.model.attention, set()).add(setting)
    assert settings["lsh"] == settings["linear"]
    points = {"lsh": set(), "linear": set()}
    for job in EXPERIMENTS["scaling"].jobs("laptop"):
        for config in job.configs:
            point = config.seq_len, config.batch_size, config.work
            points.setdefault(config.attention, set()).add(point)
    assert points["lsh"] == points["linear"]


def memory_jobs(name, scale="laptop"):
    return EXPERIMENTS[name].jobs(scale)


@pytest.mark.parametrize("name", RETRIEVAL)
def test_the_grid_of_keys_has_steps_of_40_at_most_and_all_that_was_published(name):
    most = 600 if name == "capacity" else 200
    keys = {}
    for job in memory_jobs(name):
        if not job.config.eval_half_length:
            keys.setdefault(job.config.model, []).append(job.config.task.n_keys)
    for found in keys.values():
        ordered = sorted(found)
        assert ordered[0] == 20 and ordered[-1] == most
        assert all(b - a <= 40 for a, b in zip(ordered, ordered[1:], strict=False))
        assert {n for n in (20, 60, 100, 200, 300, 400, 500, 600) if n <= most} <= set(found)


def test_three_seeds_come_first_and_the_slowest_memories_last():
    capacity = memory_jobs("capacity")
    slow = [job.config.model.implementation == "512" for job in capacity]
    assert slow == sorted(slow) and 0 < sum(slow) * 8 < len(slow)  # of eight memories
    for some in (capacity[: slow.index(True)], capacity[slow.index(True) :]):
        n_seeds = [len(job.seeds) for job in some]
        assert n_seeds == sorted(n_seeds, reverse=True) and set(n_seeds) == {3, 1}
    rules = memory_jobs("update_rules")
    tanh = [job.config.model.attention == "tanh" for job in rules]
    assert tanh == sorted(tanh) and any(tanh)


def test_delta_is_evaluated_as_published_on_both_sides_of_the_last_s_solved():
    alike = [job for job in memory_jobs("update_rules") if job.config.eval_half_length]
    keys = [job.config.task.n_keys for job in alike if job.config.model.update_rule == "delta"]
    assert {80, 100, 120} <= set(keys) and all(job.seeds == (0, 1, 2) for job in alike)
    new = [job.config.task.n_keys in (80, 120) for job in alike]
    assert new == sorted(new)


def test_the_papers_convergence_is_that_of_the_paper():
    jobs = EXPERIMENTS["convergence"].jobs("paper")
    judged = [job.seed for job in jobs if job.config.model.attention != "lsh"]
    assert sorted(judged) == sorted(2 * [0, 1, 2, 3, 4])
    for config in (job.config for job in jobs):
        assert (config.n_steps, config.batch_size) == (10_000, 64)
        assert config.task == CausalCopy(seq_len=128)
        assert (config.model.n_layers, config.model.n_heads, config.model.head_dim) == (4, 8, 32)
        assert (config.model.norm, config.model.dropout) == ("post", 0.1)
        assert (config.optimizer, config.lr, config.lr_drop_step) == ("radam", 1e-3, 3000)


@pytest.mark.parametrize("scale", ["laptop", "paper"])
def test_the_2022_task_has_the_articles_four_lengths(scale):
    assert {n for n, _ in grid("sequence_copy", scale)} == {8, 16, 32, 64}
    if scale == "paper":
        model = EXPERIMENTS["sequence_copy"].jobs(scale)[0].config.model
        sizes = (model.n_layers, model.n_heads, model.head_dim, model.d_feedforward)
        assert sizes == (4, 8, 64, 1024)


def test_step_times_have_the_lengths_of_the_articles_table_1():
    lengths = [job.configs[0].task.seq_len for job in EXPERIMENTS["step_time"].jobs("laptop")]
    assert {8, 16, 32, 64} <= set(lengths)


@pytest.mark.parametrize(
    "name, scale, first, last",
    [
        ("scaling", "laptop", 2**6, 2**14),
        ("scaling", "paper", 2**9, 2**16),
        ("crossover", "laptop", 2**9, 2**11),
        ("crossover", "paper", 2**9, 2**14),
    ],
)
def test_costs_are_measured_over_the_lengths_that_the_claims_are_about(name, scale, first, last):
    for work in ("forward", "forward_backward"):
        lengths = [
            job.configs[0].seq_len
            for job in EXPERIMENTS[name].jobs(scale)
            if job.configs[0].work == work
        ]
        assert min(lengths) <= first and max(lengths) == last


def test_every_cost_is_measured_beside_the_others_of_its_shape():
    for job in EXPERIMENTS["crossover"].jobs("laptop"):
        assert [(c.attention, c.implementation) for c in job.configs] == list(VARIANTS)
        assert len({(c.seq_len, c.batch_size, c.work) for c in job.configs}) == 1


@pytest.mark.parametrize("scale", ["laptop", "paper"])
def test_generation_is_measured_at_the_sizes_of_the_papers_images(scale):
    configs = [c for job in EXPERIMENTS["generation"].jobs(scale) for c in configs_of(job)]
    last = {}
    for config in configs:
        if config.span == "token":
            assert (config.n_heads, config.head_dim) == (8, 32)
            size = config.n_layers, config.batch_size
            last.setdefault(size, {}).setdefault(config.way, set()).add(config.seq_len)
    assert {n_layers for n_layers, _ in last} == {8, 16}
    for (n_layers, _), ways in last.items():
        assert ways.keys() == set(WAYS)
        assert {max(positions) for positions in ways.values()} == {784 if n_layers == 8 else 3072}
        assert len(set(map(frozenset, ways.values()))) == 1
    assert 1 in {batch for _, batch in last} and max(batch for _, batch in last) >= 8
    (stream,) = (c for c in configs if c.span == "stream" and c.way == "recurrent")
    assert stream.seq_len == 10**6


def test_recomputing_a_whole_sequence_takes_no_time_from_the_other_ways():
    jobs = [job for job in EXPERIMENTS["generation"].jobs("laptop") if is_whole(job)]
    ways = [[config.way for config in job.configs] for job in jobs]
    assert ways.count(["recompute"]) == 1 and ["recurrent", "cache"] in ways
    assert not any("recompute" in some and len(some) > 1 for some in ways)


def is_whole(job):
    return getattr(job.configs[0], "span", None) == "sequence"


def test_too_few_samples_are_timed_again_only_if_asked_and_where_there_is_time(data, monkeypatch):
    """A job with one sample a point as an earlier recording left it."""
    sequences = next(job for job in EXPERIMENTS["generation"].jobs("smoke") if is_whole(job))
    first = list(record(experiment_of(replace(sequences, n_repeats=1)), "smoke", device="cpu"))
    assert [len(row["summary"]["time_ms_samples"]) for row in first] == [1, 1]
    now = experiment_of(replace(sequences, n_repeats=3))
    assert not list(record(now, "smoke", device="cpu"))
    with monkeypatch.context() as patch:
        patch.setattr("replib.recording.MAX_SECONDS_PER_POINT", 0.0)
        assert not list(record(now, "smoke", device="cpu", retime_below=3))
    again = list(record(now, "smoke", device="cpu", retime_below=3))
    assert [len(row["summary"]["time_ms_samples"]) for row in again] == [3, 3]
    assert [row["run_id"] for row in again] == [row["run_id"] for row in first]
    assert not list(record(now, "smoke", device="cpu", retime_below=3))


def test_whole_sequences_are_run_beside_the_tokens_that_they_are_summed_from():
    jobs = EXPERIMENTS["generation"].jobs("laptop")
    tokens, whole = ([job for job in jobs if job.configs[0].span == span] for span in SPANS[:2])
    last = {replace(c, span="sequence") for job in tokens for c in job.configs}
    assert whole and {c for job in whole for c in job.configs} <= last


# --- what a device can run


@pytest.fixture
def packages(monkeypatch):
    """Set which packages of the compiled kernels are installed."""

    def set_installed(*names):
        monkeypatch.setattr(kernels, "installed", lambda package: package in names)

    return set_installed


def variants_of(job):
    return [(config.attention, config.implementation) for config in job.configs]


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


def test_recording_without_a_compiled_kernel_goes_on_and_measures_the_group_again_with_it(
    data, packages
):
    job = cost_job(variants=(*EVERYWHERE, ("linear", "cpu")))
    packages()
    with pytest.warns(UserWarning, match="linear cpu is left out"):
        before = rows_of(job)
        assert len(before) == 3 and rows_of(job) == []
    packages("numba")
    pytest.importorskip("numba")
    after = rows_of(job)
    assert [row["config"]["implementation"] for row in after] == [i for _, i in variants_of(job)]
    assert rows_of(job) == []
    assert store.read_rows("tiny") == [*before, *after]  # nothing is lost,
    assert recorded_rows("tiny") == after  # and what was timed together is shown together


def test_what_runs_on_a_compiled_kernel_is_known_beforehand(packages):
    packages("numba")
    by_name = dict(zip((i for _, i in VARIANTS), cost_job(variants=VARIANTS).configs, strict=True))
    used = {name for name, config in by_name.items() if uses_compiled(config, "cpu")}
    assert used == {"cpu"}
    assert uses_compiled(tiny().config, "cpu")  # without a name it takes the fastest
    assert not uses_compiled(tiny(attention="softmax").config, "cpu")
    packages()
    assert not uses_compiled(tiny().config, "cpu")


# --- identity


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


# --- recording


def rows_of(*jobs, **options):
    return list(record(experiment_of(*jobs), "smoke", device="cpu", **options))


def test_recording_appends_the_rows_that_it_yields(data):
    rows = rows_of(tiny(), cost_job())
    assert rows == store.read_rows("tiny", data)
    assert [row["outcome"] for row in rows] == ["ok"] * 4
    expected = [m.loss for m in Training(tiny().config, seed=0, device="cpu").metrics()]
    assert rows[0]["curve"]["loss"] == expected
    assert rows[0]["summary"]["final_loss"] == expected[-1]


def test_recording_again_runs_nothing_again(data):
    rows_of(tiny(), cost_job())
    assert rows_of(tiny(), cost_job()) == []
    assert [row["seed"] for row in rows_of(tiny(), tiny(seed=1), cost_job())] == [1]


def test_a_changed_source_runs_again_and_loses_no_row(data, monkeypatch):
    rows_of(tiny())
    for module in ("jobs", "recording"):
        monkeypatch.setattr(f"replib.{module}.source_of", lambda config, *, cost: "changed")
    (row,) = rows_of(tiny())
    assert row["provenance"]["source"] == "changed"
    assert len(store.read_rows("tiny", data)) == 2
    assert recorded_rows("tiny") == [row]


def test_a_run_of_another_kind_of_device_does_not_count(data, monkeypatch):
    (row,) = rows_of(tiny())
    elsewhere = dict(row, provenance=row["provenance"] | {"device": "cuda:0"})
    (data / "tiny.jsonl").unlink()
    store.append("tiny", elsewhere)
    assert len(rows_of(tiny())) == 1


class Killed(BaseException):
    """What no handler catches, like the end of a process."""


def curve_without_speed(row):
    return {key: row["curve"][key] for key in ("step", "loss", "accuracy", "train_loss")}


def test_a_run_that_another_process_is_at_is_left_to_it(data, cache):
    theirs, mine = run_ids(tiny(seed=0)) + run_ids(tiny(seed=1))
    program = (
        "import sys\nfrom replib import store\n"
        f"with store.claimed({theirs!r}) as ours:\n    print(ours, flush=True)\n"
        "    sys.stdin.read()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    other = subprocess.Popen([sys.executable, "-c", program], **pipes)
    assert other.stdout.readline() == "True\n"
    rows = rows_of(tiny(seed=0), tiny(seed=1))
    assert [row["run_id"] for row in rows] == [mine]
    other.kill()  # a claim does not outlive its process
    other.wait()
    rows = rows_of(tiny(seed=0), tiny(seed=1))
    assert [row["run_id"] for row in rows] == [theirs]


def test_a_run_that_another_process_has_finished_meanwhile_is_not_run_again(data, monkeypatch):
    claimed = store.claimed

    def finished_just_before(run):
        monkeypatch.setattr(store, "claimed", claimed)
        rows_of(tiny())
        return claimed(run)

    monkeypatch.setattr(store, "claimed", finished_just_before)
    assert rows_of(tiny()) == []
    assert len(store.read_rows("tiny", data)) == 1


def test_without_locks_every_process_runs(monkeypatch, cache):
    (cache / "claims").mkdir()
    with store.claimed("0" * 16) as ours:
        assert ours


def test_a_killed_run_resumes_at_its_checkpoint_to_the_same_end(data, monkeypatch):
    monkeypatch.setattr("replib.recording.CHECKPOINT_EVERY_S", 0.0)
    (whole,) = rows_of(tiny())
    (data / "tiny.jsonl").unlink()

    def kill(job, metrics):
        if metrics.step == 15:
            raise Killed

    with pytest.raises(Killed):
        rows_of(tiny(), on_metrics=kill)
    assert store.read_rows("tiny", data) == []
    assert checkpoint_path(*run_ids(tiny()), "cpu").exists()
    steps = []
    (row,) = rows_of(tiny(), on_metrics=lambda job, metrics: steps.append(metrics.step))
    assert steps == [15, 20]  # the checkpoint was of step 10
    assert curve_without_speed(row) == curve_without_speed(whole)
    assert not checkpoint_path(row["run_id"], "cpu").exists()


def test_a_stopped_run_is_recorded_as_interrupted_and_continued(data):
    seen = []
    stop = lambda: len(seen) >= 2  # noqa: E731
    rows = rows_of(tiny(), tiny(seed=1), stop=stop, on_metrics=lambda job, m: seen.append(m))
    (row,) = rows
    assert row["outcome"] == "interrupted" and row["curve"]["step"] == [5, 10, 10]
    rest = rows_of(tiny(), tiny(seed=1))
    assert [(r["seed"], r["outcome"]) for r in rest] == [(0, "ok"), (1, "ok")]
    assert rest[0]["curve"]["step"] == [5, 10, 10, 15, 20]
    assert rest[0]["run_id"] == row["run_id"]
    assert [r["outcome"] for r in recorded_rows("tiny")] == ["ok", "ok"]


def test_a_run_out_of_memory_is_recorded_and_the_next_goes_on(data, monkeypatch):
    step = Training.train_step

    def fail_at_seed_0(self):
        if self.seed == 0:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried\nto")
        return step(self)

    monkeypatch.setattr(Training, "train_step", fail_at_seed_0)
    rows = rows_of(tiny(), tiny(seed=1))
    assert [row["outcome"] for row in rows] == ["out_of_memory", "ok"]
    assert rows[0]["detail"].endswith("you tried: lower batch_size, seq_len or d_model")
    assert rows_of(tiny()) == []


def test_an_error_that_is_no_shortage_is_not_hidden(data, monkeypatch):
    def fail(self):
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(Training, "train_step", fail)
    with pytest.raises(RuntimeError, match="shapes differ"):
        rows_of(tiny())


def test_a_data_folder_that_cannot_be_written_is_told_before_anything_is_computed(
    tmp_path, monkeypatch
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("REPLIB_DATA", str(tmp_path / "file" / "data"))
    monkeypatch.setattr(Training, "train_step", lambda self: pytest.fail("computed in vain"))
    with pytest.raises(store.StoreError, match="REPLIB_DATA"):
        rows_of(tiny())


def test_a_checkpoint_that_cannot_be_written_is_told_and_costs_no_run(data, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("REPLIB_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr("replib.recording.CHECKPOINT_EVERY_S", 0.0)
    with pytest.warns(UserWarning, match="REPLIB_CACHE"):
        (row,) = rows_of(tiny())
    assert row["outcome"] == "ok"


def test_unknown_scales_and_experiments_are_refused_with_what_there_is(data):
    with pytest.raises(ValueError, match="unknown scale 'huge': use smoke, laptop, paper"):
        list(record(experiment_of(tiny()), "huge"))
    with pytest.raises(ValueError, match="unknown experiment 'convergense': use convergence, "):
        experiments.experiment_named("convergense")


def test_smoke_runs_are_shown_only_where_there_are_no_others(data):
    rows_of(tiny())
    assert [row["scale"] for row in recorded_rows("tiny")] == ["smoke"]
    list(record(experiment_of(tiny(seed=1)), "laptop", device="cpu"))
    assert [row["scale"] for row in recorded_rows("tiny")] == ["laptop"]
    assert recorded_rows("convergence") == []


def test_a_summary_says_where_the_run_ended_and_when_it_was_solved():
    history = [
        Metrics(step=s, train_loss=1, loss=x, accuracy=a, steps_per_s=1, seconds_left=0)
        for s, x, a in ((10, 2.0, 0.1), (20, 0.1, 0.995), (30, 0.3, 0.9), (40, 0.2, 1.0))
    ]
    found = training_summary(history)
    assert (found["n_steps"], found["final_loss"], found["final_accuracy"]) == (40, 0.2, 1.0)
    assert (found["best_loss"], found["steps_to_solved"]) == (0.1, 20)
    assert training_summary(history[:1])["steps_to_solved"] is None
    assert training_summary([]) == {"n_steps": 0}


# --- what the controls ask for

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


def test_controls_become_a_job_a_length():
    jobs = live_cost_jobs(COST)
    assert [[c.seq_len for c in job.configs] for job in jobs] == [[16, 16], [32, 32], [64, 64]]
    assert {c.batch_size for job in jobs for c in job.configs} == {2}
    assert [(c.attention, c.implementation) for c in jobs[0].configs] == [
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
    label, implementations = "Mean", ("slow", "quick")

ATTENTION["mean"] = Mean
from replib.live_jobs import ALL_VARIANTS, live_copy_jobs, live_cost_jobs
assert ALL_VARIANTS["mean quick"] == ("mean", "quick")
jobs = live_cost_jobs(COST | {"variants": ("mean slow", "mean quick")})
assert [c.implementation for c in jobs[0].configs] == ["slow", "quick"]
assert live_copy_jobs(COPY | {"attention": ("mean",)})[0].config.model.attention == "mean"
"""


def test_one_line_in_the_registry_brings_a_mechanism_into_the_controls():
    # It stands in the registry when `experiments` is imported, so in a process of its own.
    program = f"COPY, COST = {COPY}, {COST}\n{NEW_MECHANISM}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_controls_offer_every_implementation_of_every_mechanism():
    expected = {(name, i) for name, cls in ATTENTION.items() for i in cls.implementations}
    assert set(ALL_VARIANTS.values()) == expected and len(ALL_VARIANTS) == len(expected)


def sets_of_defects(name):
    """Mechanism and N -> set of defects -> its seeds."""
    found = {}
    for job in EXPERIMENTS[name].jobs("laptop"):
        for config in configs_of(job):
            sets = found.setdefault((config.model.attention, config.task.seq_len), {})
            sets.setdefault(config.defects, []).append(getattr(job, "seed", 0))
    return found


def with_each_off(every):
    return {tuple(one for one in every if one != off) for off in every}


def test_the_autopsy_has_no_all_alone_on_and_alone_off_of_each_mechanism_at_each_length():
    for name, broken in (("autopsy_time", article_defects), ("autopsy", loss_defects)):
        grid = sets_of_defects(name)
        assert set(grid) == {(a, n) for a in ("softmax", "linear") for n in (8, 16, 32, 64)}
        for (attention, _), sets in grid.items():
            alone_on = {(one,) for one in article_defects(attention)}
            wanted = {(), broken(attention), *alone_on, *with_each_off(broken(attention))}
            if (name, attention) == ("autopsy", "linear"):  # what learns then is no leak
                wanted.add(tuple(d for d in broken(attention) if d not in ("adam", "leak")))
            assert wanted <= set(sets) <= wanted | {article_defects(attention)}
            seeds = [0] if name == "autopsy_time" else [0, 1, 2]
            assert all(sets[one] == seeds for one in wanted)
            assert sets[article_defects(attention)][0] == 0


def test_the_first_seeds_of_the_autopsy_tell_what_each_defect_does():
    jobs = EXPERIMENTS["autopsy"].jobs("laptop")
    last_on = max(i for i, job in enumerate(jobs) if len(job.config.defects) == 1)
    off = {d for a in ("softmax", "linear") for d in with_each_off(loss_defects(a))}
    assert last_on < min(i for i, job in enumerate(jobs) if job.config.defects in off)
