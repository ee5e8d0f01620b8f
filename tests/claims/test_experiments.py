"""The named experiments: what they are made of."""

from dataclasses import asdict, replace

import pytest
from small import experiment_of, is_whole, tiny

from replib.claims import EXPERIMENTS, experiment_named
from replib.claims.autopsy.defects import article_defects, loss_defects
from replib.claims.common import VARIANTS
from replib.lab.record import SCALES, record
from replib.lab.runs.generation import SPANS, WAYS
from replib.tasks import CausalCopy

GRIDS = [(name, scale) for name in EXPERIMENTS for scale in SCALES]
RETRIEVAL = ("capacity", "update_rules")


@pytest.mark.parametrize("name, scale", GRIDS)
def test_no_run_of_a_grid_occurs_twice(name, scale):
    ids = [run for job in EXPERIMENTS[name].jobs(scale) for run in job.ids]
    assert ids and len(ids) == len(set(ids))


# Grids whose points are not the same setting under softmax and under linear attention.
OF_THEIR_OWN = {
    "generation",
    "autopsy",
    "autopsy_full",
    "autopsy_time",
    "autopsy_longer",
    "linformer",
    "linformer_stack",
    "number_words",
    "translation",
    "language_model",
    "wikitext103",
    "update_rules_text",
    "text_carry",
    "evaluation",
    "favor_eps",
    *RETRIEVAL,
}


@pytest.mark.parametrize("name, scale", [grid for grid in GRIDS if grid[0] not in OF_THEIR_OWN])
def test_every_point_of_a_grid_has_softmax_beside_linear(name, scale):
    found = {}
    for job in EXPERIMENTS[name].jobs(scale):
        for config in job.configs:
            model = getattr(config, "model", config)
            other = {k: v for k, v in asdict(config).items() if k != "model"}
            other |= {k: v for k, v in asdict(model).items()}
            del other["attention"], other["options"], other["kernel"]
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
    variants = [[getattr(c, "model", c) for c in job.configs] for job in jobs]
    is_lsh = [{model.attention for model in some} == {"lsh"} for some in variants]
    assert is_lsh == sorted(is_lsh) and any(is_lsh)
    first = is_lsh.index(True)
    assert "lsh" not in {model.attention for some in variants[:first] for model in some}
    found = {model.variant[1] for some in variants[first:] for model in some}
    rounds = {"4 rounds"} | ({"1 round", "8 rounds"} if name == "scaling" else set())
    assert found == {f"original {x}" if scale == "paper" else x for x in rounds}


def test_lsh_has_the_settings_of_what_it_stands_beside():
    jobs = EXPERIMENTS["convergence"].jobs("laptop")
    settings = {}
    for job in jobs:
        model = replace(job.config.model, attention="linear", options=None)
        setting = replace(job.config, model=model)
        settings.setdefault(job.config.model.attention, set()).add(setting)
    assert settings["lsh"] == settings["linear"]
    points = {}
    for job in EXPERIMENTS["scaling"].jobs("laptop"):
        for config in job.configs:
            point = config.seq_len, config.batch_size, config.work
            points.setdefault(config.attention, set()).add(point)
    tokens = max(n for n, _, _ in points["linear"])
    assert points["lsh"] == {point for point in points["linear"] if point[0] * point[1] == tokens}


@pytest.mark.parametrize("scale", ["smoke", "laptop", "paper"])
def test_scaling_has_as_many_tokens_at_every_length_and_beside_that_one_sequence(scale):
    configs = [config for job in EXPERIMENTS["scaling"].jobs(scale) for config in job.configs]
    lengths = sorted({config.seq_len for config in configs})
    for work in ("forward", "forward_backward"):
        for variant in (("softmax", "textbook"), ("linear", "torch"), ("linear", "cpu")):
            points = sorted(
                (config.seq_len, config.batch_size)
                for config in configs
                if (*config.variant, config.work) == (*variant, work)
            )
            expected = {(n, lengths[-1] // n) for n in lengths}
            if work == "forward_backward":
                expected |= {(n, 1) for n in lengths}
            assert points == sorted(expected)  # each once


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
    slow = [job.config.model.size == 512 for job in capacity]
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
        assert [c.variant for c in job.configs] == list(VARIANTS)
        assert len({(c.seq_len, c.batch_size, c.work) for c in job.configs}) == 1


@pytest.mark.parametrize("scale", ["laptop", "paper"])
def test_generation_is_measured_at_the_sizes_of_the_papers_images(scale):
    configs = [c for job in EXPERIMENTS["generation"].jobs(scale) for c in job.configs]
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


def test_whole_sequences_are_run_beside_the_tokens_that_they_are_summed_from():
    jobs = EXPERIMENTS["generation"].jobs("laptop")
    tokens, whole = ([job for job in jobs if job.configs[0].span == span] for span in SPANS[:2])
    last = {replace(c, span="sequence") for job in tokens for c in job.configs}
    assert whole and {c for job in whole for c in job.configs} <= last


def test_unknown_scales_and_experiments_are_refused_with_what_there_is(data):
    with pytest.raises(ValueError, match="unknown scale 'huge': use smoke, laptop, paper"):
        list(record(experiment_of(tiny()), "huge"))
    with pytest.raises(ValueError, match="unknown experiment 'convergense': use convergence, "):
        experiment_named("convergense")


def sets_of_defects(name):
    """Mechanism and N -> set of defects -> its seeds."""
    found = {}
    for job in EXPERIMENTS[name].jobs("laptop"):
        for config in job.configs:
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
