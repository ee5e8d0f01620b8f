"""Each notebook as a function of its settings: jobs, live rows, verdicts and what goes wrong.

A notebook runs through marimo's `app.run(defs=...)`, which replaces the cell that reads the panel.
"""

import ast
import html
import importlib
import importlib.util
import json
import math
import re
from types import SimpleNamespace

import marimo as mo
import pytest
import synthetic

from replib.attention import linear
from replib.claims import CLAIMS, PAGES, cost_page
from replib.claims.autopsy import page as autopsy_page
from replib.claims.autopsy.defects import DEFECTS
from replib.claims.cost_page import ALL_VARIANTS, refused_variants
from replib.lab import store
from replib.lab.recorded import recorded_rows
from replib.lab.runs.generation import WAYS
from replib.pages import controls, running, verdict_cards
from replib.published import published
from replib.report.write import NOTEBOOKS

PATHS = {stem: NOTEBOOKS / f"{stem}.py" for stem in PAGES.values()}
MAX_FUNCTION_LINES, LINE_LENGTH = 10, 100

# The quickest runs there are, one per notebook.
COPY = {
    "seq_len": 8,
    "batch_size": 4,
    "n_steps": 50,
    "n_layers": 1,
    "n_heads": 1,
    "head_dim": 4,
    "lr": 1e-3,
    "seeds": 1,
    "attention": ("softmax", "linear"),
    "task": "causal copy",
    "device": "cpu",
}
COST = {
    "seq_len": 32,
    "shortest": 16,
    "n_heads": 1,
    "head_dim": 8,
    "repeats": 3,
    "work": "forward",
    "variants": ("softmax textbook", "softmax fused", "linear torch"),
    "device": "cpu",
}
SETTINGS = {
    "01_convergence": COPY,
    "02_linear_scaling": COST | {"tokens": 32},
    "03_speed_crossover": COST | {"batch_size": 2},
    "04_transformers_are_rnns": {
        "seq_len": 8,
        "batch_size": 2,
        "n_layers": 1,
        "n_heads": 1,
        "head_dim": 8,
        "n_tokens": 100,
        "device": "cpu",
    },
    "05_replication_autopsy": {
        "seq_len": 8,
        "n_steps": 10,
        "model": "small",
        "attention": ("softmax", "linear"),
        "defects": ("float64", "leak"),
        "device": "cpu",
    },
    "06_fast_weights": {
        "n_keys": 5,
        "head_dim": 8,
        "n_steps": 50,
        "seeds": 2,
        "update_rule": "sum",
        "setting": "every key once",
        "attention": ("softmax", "relu"),
        "device": "cpu",
    },
    "07_linformer": {
        "k": 2,
        "n_steps": 50,
        "batch_size": 4,
        "attention": ("softmax", "linformer"),
        "device": "cpu",
    },
    "08_language_model": {
        "seq_len": 8,
        "batch_size": 4,
        "n_steps": 50,
        "n_layers": 1,
        "n_heads": 1,
        "lr": 1e-2,
        "embedding_dropout": 0.0,
        "positions": "sinusoids",
        "attention": ("softmax", "delta"),
        "device": "cpu",
    },
}
COSTS = [stem for stem in SETTINGS if "variants" in SETTINGS[stem]]
RECORDED_IN = {
    "01_convergence": ("convergence", "sequence_copy"),
    "02_linear_scaling": ("scaling",),
    "03_speed_crossover": ("crossover", "step_time"),
    "04_transformers_are_rnns": ("generation",),
    "05_replication_autopsy": (
        *("autopsy", "autopsy_full"),
        *("autopsy_time", "autopsy_longer", "step_time"),
    ),
    "06_fast_weights": ("capacity", "update_rules"),
    "07_linformer": ("linformer", "linformer_stack", "translation", "number_words"),
    "08_language_model": ("language_model", "text_axes", "update_rules_text", "text_carry"),
}
NOT_YET_RECORDED = ("04", "05", "06", "07", "08")
NOT_AUTO = SimpleNamespace(value=False)
RUNNABLE = tuple(name for name in ALL_VARIANTS if name not in refused_variants())


def loaded(stem):
    spec = importlib.util.spec_from_file_location(f"notebook_{stem}", PATHS[stem])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_notebook(stem, defs=None, **changes):
    """The text of a notebook's page and its names, for its settings with some changed."""
    module = loaded(stem)
    settings = SETTINGS[stem] | changes
    asked = running.asked(live_jobs(stem), settings)
    outputs, names = module.app.run(defs={"settings": settings, "asked": asked} | (defs or {}))
    page = "\n".join(mo.as_html(output).text for output in outputs if output is not None)
    return html.unescape(page), names


def live_jobs(stem):
    """The jobs of a notebook's settings."""
    if stem in COSTS:
        return cost_page.live_jobs
    (claim, *_) = (one for one in CLAIMS if one.notebook == stem)
    owner = "translation" if stem.startswith("07") else claim.name
    return importlib.import_module(f"replib.claims.{owner}.page").live_jobs


def session(page):
    """What the verdict card says of this session."""
    return page.split(f"{verdict_cards.THIS_MACHINE}</strong>")[1].split("</div>")[0]


def lengths_of(jobs):
    return [job.configs[0].seq_len for job in jobs]


def test_settings_are_known_for_every_notebook():
    assert list(SETTINGS) == list(PATHS)


@pytest.mark.parametrize("stem", PATHS)
def test_functions_of_a_notebook_have_at_most_ten_lines(stem):
    tree = ast.parse(PATHS[stem].read_text())
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    too_long = {f.lineno: n for f in functions if (n := n_code_lines(f)) > MAX_FUNCTION_LINES}
    assert functions and not too_long


def n_code_lines(function):
    """Lines of a body written as wide as a line may be, its texts and docstring left out."""
    for node in ast.walk(function):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            node.value = ""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    lines = "\n".join(map(ast.unparse, body)).splitlines()
    return sum(math.ceil(len(line) / LINE_LENGTH) for line in lines)


def test_lines_of_a_function_are_counted_without_its_texts():
    source = f'def f():\n    """Text."""\n    a = "{"long" * 99}"\n    b = {[1] * 99}\n    return a'
    assert n_code_lines(ast.parse(source).body[0]) == 1 + 4 + 1


@pytest.mark.parametrize("changes", [{}, {"seq_len": 16, "batch_size": 8, "n_steps": 100}])
@pytest.mark.parametrize("attention", [("softmax",), ("linear",), ("softmax", "linear")])
def test_convergence_jobs_follow_the_settings(changes, attention):
    settings = COPY | changes | {"attention": attention, "seeds": 2, "n_heads": 2}
    _, names = run_notebook("01_convergence", {"auto": NOT_AUTO}, **settings)
    jobs = names["asked"].jobs
    assert [(job.config.model.attention, job.seed) for job in jobs] == [
        (name, seed) for seed in (0, 1) for name in attention
    ]
    for job in jobs:
        assert job.config.task.seq_len == settings["seq_len"]
        assert job.config.batch_size == settings["batch_size"]
        assert job.config.n_steps == settings["n_steps"]
        assert (job.config.model.n_heads, job.config.model.d_model) == (2, 8)


@pytest.mark.parametrize("stem", COSTS)
@pytest.mark.parametrize("variants", [("linear torch",), RUNNABLE])
@pytest.mark.parametrize("work", ["forward", "forward_backward"])
def test_cost_jobs_follow_the_settings(stem, variants, work):
    changes = {"seq_len": 64, "variants": variants, "work": work, "n_heads": 2, "repeats": 5}
    _, names = run_notebook(stem, {"auto": NOT_AUTO}, **changes)
    assert lengths_of(names["asked"].jobs) == [16, 32, 64]
    for job in names["asked"].jobs:
        assert [" ".join(c.variant) for c in job.configs] == list(variants)
        assert {(c.work, c.n_heads, c.head_dim) for c in job.configs} == {(work, 2, 8)}
        assert job.n_repeats == 5
    batches = [job.configs[0].batch_size for job in names["asked"].jobs]
    assert batches == ([4, 2, 1] if "tokens" in SETTINGS[stem] else [2, 2, 2])


@pytest.mark.parametrize("stem", COSTS)
def test_longest_below_shortest_measures_the_longest_alone(stem):
    _, names = run_notebook(stem, {"auto": NOT_AUTO}, seq_len=16, shortest=64)
    assert lengths_of(names["asked"].jobs) == [16]


@pytest.mark.parametrize("stem", [stem for stem in PATHS if stem[:2] != "04"])
def test_no_attention_chosen_is_said_and_starts_nothing(stem):
    page, names = run_notebook(stem, attention=(), variants=())
    assert "choose at least one attention" in page
    assert names["run"] is None
    assert names["live"].poll() is None


def test_impossible_settings_are_said_and_start_nothing():
    page, names = run_notebook("01_convergence", seq_len=1)
    assert "seq_len 1" in page
    assert names["asked"].jobs == [] and names["live"].poll() is None


@pytest.mark.parametrize("stem", COSTS)
def test_a_kernel_that_cannot_run_is_explained_and_starts_nothing(stem, monkeypatch):
    reason = "numba is missing: pip install numba"
    monkeypatch.setattr(linear, "why_not", lambda kernel, **kind: reason)
    page, names = run_notebook(stem, variants=("linear cpu", "softmax fused"))
    assert f"linear cpu cannot run with these settings: {reason}" in page
    assert names["asked"].jobs == [] and names["live"].poll() is None
    assert "linear cpu" not in names["panel"].elements["variants"].options


@pytest.mark.parametrize("stem", PATHS)
def test_a_notebook_asks_for_the_jobs_of_its_panel(stem, data):
    module = loaded(stem)
    _, names = module.app.run(defs={"auto": NOT_AUTO})
    assert names["settings"].items() >= names["panel"].value.items()
    expected = running.asked(live_jobs(stem), names["settings"])
    assert names["asked"].jobs == expected.jobs and names["asked"].jobs


@pytest.mark.parametrize("stem", PATHS)
def test_a_long_run_waits_for_its_button(stem, data):
    longer = {"n_steps": 10000, "repeats": 31, "n_layers": 6, "batch_size": 32, "n_tokens": 10**6}
    longer |= {"seq_len": 256 if stem[:2] in ("01", "05", "08") else 16384, "n_keys": 600}
    page, names = run_notebook(stem, **longer)
    assert "Run (about" in page or "This would take" in page
    assert names["live"].poll() is None
    assert "Nothing has run yet" in session(page)


@pytest.mark.parametrize("stem", PATHS)
def test_a_short_run_starts_by_itself_and_is_shown_from_the_cache_afterwards(stem, data):
    if stem == "01_convergence":
        words = SimpleNamespace(value="ab"), SimpleNamespace(value=0)
        extra = dict(zip(("letters", "draw"), words, strict=True))
    else:
        extra = {}
    page, names = run_notebook(stem, extra)
    assert names["run"] is None
    assert "Nothing has run yet" in session(page)
    live = names["live"]
    live.join()
    assert live.poll().error is None and live.finished

    again, names = run_notebook(stem, extra)
    assert names["live"].poll() is None  # nothing was started
    assert "These settings have been run" in again
    assert "Nothing has run yet" not in session(again)
    rows = names["live"].rows(names["asked"].jobs, "cpu")
    assert [row["run_id"] for row in rows] == [row["run_id"] for row in live.finished]
    assert {row["outcome"] for row in rows} == {"ok"}
    if extra:
        assert again.count("of 2 right") == 3  # the sequence itself and the copies of two models
    other, names = run_notebook(stem, extra | {"auto": NOT_AUTO}, head_dim=16, seq_len=16, k=4)
    assert "Run (about" in other
    if stem != "07_linformer":  # whose softmax is the same run for every k
        assert "Nothing has run yet" in session(other)


# What the synthetic rows make of each claim: sentences, and numbers that a pattern finds, which
# another processor may round otherwise.
VERDICTS = {
    "01_convergence": [
        "✓ supported",
        "Small models: as accurate as softmax at N = 16, 32, 64, 128",
        (r"16, 1000 steps: supported: .{60,70} final loss ([\d.]+)×", 1.17),
    ],
    "02_linear_scaling": [
        "✓ supported",
        (r"linear cpu, time grows as N\^([-\d.]+)", 1.0),
        (r"softmax textbook, time grows as N\^([-\d.]+)", 2.0),
        (r"linear plain, time grows as N\^([-\d.]+)", 2.0),
    ],
    "03_speed_crossover": [
        "✓ supported",
        "Linear (cpu) is faster from N = 100 against softmax (textbook), from N = 600 against",
        "plain not up to N = 2048; torch N = 300 to 1800; cpu N = 100 to 600",
        "The crossover moves to shorter N",
    ],
    "04_transformers_are_rnns": [
        "✓ supported",
        (r"CIFAR-10, batch 8: supported: the N-th token's time grows as N\^([-\d.]+)", 0.0),
        (r"8: supported: the N-th .{30,60}? as N\^([-\d.]+) \(recompute\)", 1.0),
        (r"linear is ([\d.]+)× \(.{5,30}\) as fast as cached softmax, by the paper", 1 + 785 / 200),
        (
            r"linear is ([\d.]+)× \(.{5,30}\) as fast as recomputing; summed .{30,60}?4462×",
            3073 / 4,
        ),
        (r"1,000,000 tokens in (\d+) s, 8.7 kB kept at first, 8.7 kB at the end", 500),
        (r"\w+, batch 1: token \d+: a cache takes ([\d.]+)", 1 + 3072 / 100),
    ],
    "05_replication_autopsy": [
        "≠ refuted",
        "12 of 12 mended linear runs learn to copy (model size 64; the article's 512)",
        "mended, linear takes 1.57× (no interval) softmax's time at N = 8 and 0.857×",
        "mended steps cross: N = 40",
        "N = 64, broken: 5.79× (no interval)",
        "“predict” N = 3149",
    ],
    "06_fast_weights": [
        "✓ supported",
        (r"Half of the runs solve S = (\d+) or more with softmax", 580),
        (r"(\d+) or more with DPFP-2 \(delta\)", 195),
    ],
    "07_linformer": [
        "✗ not supported",
        "Faster than textbook softmax from below N = 256, than fused softmax from N = 1200: ",
        "BLEU on multi30k: softmax 36.1, linear 33.1, linformer k8 36.1",
    ],
    "08_language_model": [
        "✓ supported",
        "Shakespeare, a character: softmax 4.96, linear 4.96",
        "Sum or delta?",
    ],
}


@pytest.mark.parametrize("stem", PATHS)
def test_verdicts_hold_the_numbers_of_the_recorded_rows(stem, data):
    synthetic.write_recorded(data)
    page, _ = run_notebook(stem, {"auto": NOT_AUTO})
    for said in VERDICTS[stem]:
        if isinstance(said, str):
            in_chart = json.dumps(said)[1:-1]
            # As text, in a chart, or in one within another element.
            assert any(one in page for one in (said, in_chart, json.dumps(in_chart)[1:-1]))
        else:
            pattern, number = said
            found = re.findall(pattern, page)
            assert found, pattern
            assert float(found[0]) == pytest.approx(number, rel=0.05, abs=0.02), pattern


def test_a_crossover_moves_with_the_recorded_rows(data, monkeypatch):
    monkeypatch.setitem(synthetic.CROSSOVERS, "fused", 300)
    synthetic.write_recorded(data)
    page, _ = run_notebook("03_speed_crossover", {"auto": NOT_AUTO})
    assert "N = 300 against softmax (fused)" in page
    assert "✓ supported" in page and "not supported" not in page


def test_seeds_that_do_not_learn_turn_the_verdict(data):
    synthetic.write_recorded(data)
    rows = store.read_rows("convergence")
    for row in rows:
        if row["config"]["model"]["attention"] == "linear":
            row["summary"] |= {"final_loss": 2.2, "final_accuracy": 0.2}
    (data / "convergence.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    page, _ = run_notebook("01_convergence", {"auto": NOT_AUTO})
    assert "? not tested at the paper's size" in page  # by these small models
    assert "Small models: not learned at 16, 32, 64, 128" in page


@pytest.mark.parametrize("stem", PATHS)
def test_a_notebook_without_recorded_rows_opens_and_says_so(stem, data):
    page, _ = run_notebook(stem, {"auto": NOT_AUTO})
    said = ("No measurements yet", "no measurements yet", "No runs yet", "no runs yet")
    assert any(one in page for one in said)
    assert "? not recorded yet" in page and "Recorded here</strong>" in page
    others = ("2022 replication", "Linformer work", "language-model study")
    assert any(f"{other}</strong>" in page for other in others)


@pytest.mark.parametrize("stem", PATHS)
def test_a_torn_line_among_the_recorded_rows_is_skipped_with_a_warning(stem, data):
    synthetic.write_recorded(data)
    name = RECORDED_IN[stem][0]
    with (data / f"{name}.jsonl").open("a") as file:
        file.write('{"run_id": "12')
    with pytest.warns(UserWarning, match=f"{name}.jsonl"):
        page, _ = run_notebook(stem, {"auto": NOT_AUTO})
    assert VERDICTS[stem][0] in page


@pytest.mark.parametrize("stem", PATHS)
def test_the_committed_rows_are_shown_with_their_device(stem):
    rows = [row for name in RECORDED_IN[stem] for row in recorded_rows(name)]
    page, _ = run_notebook(stem, {"auto": NOT_AUTO})
    if not rows and stem.startswith(NOT_YET_RECORDED):
        assert "No measurements yet" in page or "No runs yet" in page
        return
    assert rows, f"nothing is recorded for {stem}"
    for device in {row["provenance"]["device_name"] for row in rows}:
        assert f"Recorded here, {device}" in page or f"{device}</strong>" in page


AUTOPSY = "05_replication_autopsy"


def test_with_all_switches_off_the_mended_runs_alone_are_made_and_that_is_said(data):
    _, names = run_notebook(AUTOPSY, {"auto": NOT_AUTO}, defects=())
    defects = [job.configs[0].defects for job in names["asked"].jobs]
    assert defects == [()] * 3  # and the steps of both
    assert list(names["switches"].elements) == list(DEFECTS)


def test_switches_of_the_address_bar_are_on(monkeypatch):
    monkeypatch.setattr(mo, "cli_args", lambda: SimpleNamespace(to_dict=dict))
    default = set(autopsy_page.SWITCHES.default)
    for text, on in (("leak,adam", {"leak", "adam"}), ("none", set()), ("nonsense", default)):
        query = SimpleNamespace(to_dict=lambda text=text: {"defects": text})
        monkeypatch.setattr(mo, "query_params", lambda query=query: query)
        assert set(controls.asked_for(autopsy_page.SWITCHES)) == on


def test_the_prediction_follows_its_points_and_model():
    article = published()["dm2022"]
    points = {"points": ("8", "16", "32", "64"), "softmax_model": "full_quadratic"}
    assert "6219" in autopsy_page.prediction(article, points).text
    points["softmax_model"] = "linear"
    assert "predict no crossover" in autopsy_page.prediction(article, points).text
    points["points"] = ("8", "64")
    said = autopsy_page.prediction(article, points).text
    assert "2 lengths, the model “a + b N, a straight line” needs 3" in said


FAST_WEIGHTS = "06_fast_weights"


def test_memories_follow_the_settings():
    every = ("softmax", "linear", "DPFP-3", "FAVOR+ 128", "relu", "tanh")
    changes = {"attention": every, "n_keys": 20, "head_dim": 16}
    again = {"setting": "keys come back", "update_rule": "delta"}
    _, names = run_notebook(FAST_WEIGHTS, {"auto": NOT_AUTO}, **changes, **again)
    models = [job.config.model for job in names["asked"].jobs]
    assert [model.size for model in models] == [None, None, 3, 128, None, None]
    assert [model.update_rule for model in models] == ["sum", *["delta"] * 5]
    for job in names["asked"].jobs:
        assert (job.config.task.n_keys, job.config.task.seq_len) == (20, 40)
        assert (job.seeds, job.config.model.head_dim, job.config.n_steps) == ((0, 1), 16, 50)


def test_the_memory_that_is_filled_and_its_equation_are_there_without_any_run(data):
    page, names = run_notebook(FAST_WEIGHTS, {"auto": NOT_AUTO})
    for said in ("fill by itself", "capacity.filling.write", "Lowest loss of all keys"):
        assert said in page
    assert not names["live"].finished


def test_generation_jobs_follow_the_settings():
    stem, changes = "04_transformers_are_rnns", {"seq_len": 16, "n_heads": 2}
    _, names = run_notebook(stem, {"auto": NOT_AUTO}, **changes)
    *jobs, stream, cached = names["asked"].jobs
    assert lengths_of(jobs) == [1, 2, 4, 8, 16]
    for job in jobs:
        assert [config.way for config in job.configs] == list(WAYS)
        assert {(c.batch_size, c.n_layers, c.n_heads, c.head_dim) for c in job.configs} == {
            (2, 1, 2, 8)
        }
    spans = [(c.way, c.span, c.seq_len) for job in (stream, cached) for c in job.configs]
    assert spans == [("recurrent", "stream", 100), ("cache", "stream", 100)]


def test_a_short_stream_runs_by_itself_and_is_drawn(data):
    _, names = run_notebook("04_transformers_are_rnns")
    names["live"].join()
    assert names["live"].poll().error is None
    page, names = run_notebook("04_transformers_are_rnns")
    rows = names["live"].rows(names["asked"].jobs, "cpu")
    assert {row["outcome"] for row in rows} == {"ok"}
    assert "100 tokens: the state grows by 0 bytes" in page
