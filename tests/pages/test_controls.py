"""The parts that notebooks share: nothing from outside breaks a panel, a run panel or a card."""

import re
import shutil
from dataclasses import replace
from types import SimpleNamespace

import marimo as mo
import pytest
import torch
from shown import cost_row, job, markup

from replib import kernels
from replib.claims import CLAIMS, cost_page
from replib.claims.claim import Recorded, Statement
from replib.lab.run import CostJob
from replib.lab.verdict import (
    NOT_SUPPORTED,
    NOT_TESTED,
    NOT_TOLD,
    SUPPORTED,
    Criterion,
    Verdict,
)
from replib.pages import code, controls, layout, running, verdict_cards
from replib.pages.controls import Control, initial_values
from replib.pages.live import Batch
from replib.training import Training

N = Control("seq_len", "Sequence length", (8, 16, 32, 64), 32)
RATE = Control("lr", "Learning rate", (3e-4, 1e-3, 5e-3), 5e-3)
KINDS = Control("attention", "Attention", ("softmax", "linear"), ("softmax",))
WORK = Control("work", "Work", ("forward", "forward_backward"), "forward")
KERNEL = Control(
    "variants", "Kernel", ("plain", "cpu"), ("cpu",), refused={"cuda": "no <CUDA> device: use cpu"}
)
STEPS = Control("n_steps", "Steps", (50, 100), 50)
ALL = [N, RATE, KINDS, WORK, controls.DEVICE]


@pytest.mark.parametrize(
    "control, text, value",
    [
        (N, "64", 64),
        (N, "64.0", 64),
        (N, ["8", "64"], 64),
        (RATE, "1e-3", 1e-3),
        (KINDS, "linear,softmax", ("softmax", "linear")),
        (KINDS, ["linear", "softmax"], ("softmax", "linear")),
        (WORK, "forward_backward", "forward_backward"),
    ],
)
def test_a_value_on_offer_is_taken_without_a_note(control, text, value):
    assert control.read(text) == (value, None)


@pytest.mark.parametrize(
    "control, text, value",
    [
        (N, "-1", 8),
        (N, "1e999", 64),
        (N, "9" * 500, 64),
        (N, 10**400, 32),
        (N, "40", 32),
        (N, "nan", 32),
        (N, "<script>", 32),
        (N, None, 32),
        (RATE, "0.004", 5e-3),
        (KINDS, "reformer,linear", ("linear",)),
        (KINDS, ["<b>"], ("softmax",)),
        (KERNEL, "cuda,plain", ("plain",)),
        (WORK, "sideways", "forward"),
        (WORK, [], "forward"),
    ],
)
def test_any_other_value_is_replaced_by_one_on_offer_and_the_note_says_which(control, text, value):
    found, note = control.read(text)
    assert found == value
    assert note.startswith(f"{control.label}: ")
    assert str(value if not control.several else ", ".join(value)) in note and "used" in note


def test_the_url_goes_before_the_command_line_and_both_before_the_default():
    url, line = {"seq_len": "64"}, {"seq-len": 8, "lr": 1e-3}
    values, notes = initial_values([N, RATE, WORK], url, line)
    assert values == {"seq_len": 64, "lr": 1e-3, "work": "forward"} and notes == []
    assert initial_values([N], {"seq_len": "abc"}, {"seq_len": 8})[0] == {"seq_len": 32}
    assert initial_values([STEPS], {"steps": "100"}) == ({"n_steps": 100}, [])


def test_a_panel_starts_from_the_url_and_offers_every_value(page):
    page.url.update(seq_len="16", attention="linear")
    elements, shown = controls.panel(ALL)
    expected = {"seq_len": 16, "lr": 5e-3, "attention": ["linear"], "work": "forward"}
    assert elements.value == expected | {"device": "auto"}
    assert elements.elements["seq_len"].steps == list(N.values)
    assert all(control.label in shown.text for control in ALL) and "used" not in shown.text


def test_a_static_page_refuses_what_no_panel_of_its_notebook_has(page, monkeypatch):
    monkeypatch.setattr(layout, "in_static_page", lambda: True)
    monkeypatch.setattr(layout, "asked_parameters", lambda: ["seq-len", "steps"])
    controls.panel([N], [STEPS])
    with pytest.raises(ValueError, match=r"^--steps is not a parameter\. Use --seq-len 8 \| 16"):
        controls.panel([N], [KINDS])


def test_notes_are_shown_as_text_whatever_they_hold(page):
    page.url.update(seq_len="<img src=x onerror=alert(1)>", lr="[x](javascript:alert(1))")
    shown = markup(controls.panel(ALL)[1])
    assert "&lt;img src=x onerror=alert(1)&gt;" in shown  # what was wrong is told
    assert "[x](javascript:alert(1))" in shown
    assert "<img" not in shown and "href" not in shown


def test_what_differs_from_the_defaults_is_shared_through_the_url_and_read_back(page):
    elements, _ = controls.panel(ALL)
    controls.chosen(elements)
    assert page.url == {}  # opening a page is no step of Back
    settings = elements.value | {"seq_len": 64, "attention": ["softmax", "linear"]}
    controls.share(settings, elements.unsaid)
    assert page.url == {"seq_len": "64", "attention": "softmax,linear"}
    again, shown = controls.panel(ALL)
    assert again.value == settings and "used" not in shown.text
    controls.share(elements.value, elements.unsaid)
    assert page.url == {"seq_len": "32", "attention": "softmax"}


def test_jobs_that_cannot_be_are_explained_instead():
    def build(settings):
        raise ValueError("heads <3> do not fit")

    jobs, problem = controls.attempt(build, {})
    assert jobs is None and "heads &lt;3&gt; do not fit" in markup(problem)


@pytest.fixture
def packages(monkeypatch):
    """Set which packages of the compiled kernels are installed."""

    def set_installed(*names):
        monkeypatch.setattr(kernels, "installed", lambda package: package in names)

    return set_installed


def test_the_kernels_on_offer_are_those_that_can_run_here(page, packages, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    packages("numba")
    control = cost_page.variants()
    assert "linear cpu" in control.default and "linear plain" in control.values
    assert "linear cuda" not in control.values
    packages()
    page.url["variants"] = "linear cpu,softmax fused"
    elements, shown = controls.panel([cost_page.variants()])
    assert elements.value == {"variants": ["softmax fused"]}
    assert "linear cpu cannot run here" in markup(shown) and "pip install numba" in markup(shown)


# --- what there is to press


@pytest.fixture
def seconds(monkeypatch):
    """Set what a run is predicted to take."""
    monkeypatch.setattr(running, "refusal", lambda *_: None)
    monkeypatch.setattr(running, "predicted_each", lambda *_: [])
    return lambda value: monkeypatch.setattr(running, "together_s", lambda *_: value)


def gate(live, jobs, auto=True):
    return running.gate(live, jobs, auto, "cpu")


@pytest.mark.parametrize("status", ["stopped", "failed"])
def test_what_was_stopped_or_failed_does_not_start_again_by_itself(live, seconds, status):
    seconds(0.1)
    gate(live, [job()])
    live.stop()
    live.join(60)
    live.finished.clear()  # as if it had ended before its first row
    shutil.rmtree(live.folder, ignore_errors=True)
    live.poll().status = status
    button, _ = gate(live, [job()])
    assert "Run on" in button.text
    assert gate(live, [job(seed=1)])[0] is None  # other settings do


def test_a_short_run_starts_by_itself_and_can_be_run_again(live, seconds):
    seconds(running.AUTO_RUN_BELOW_S - 1)
    assert gate(live, [job()]) == (None, "")
    live.join(60)
    assert len(live.finished) == 1
    button, text = gate(live, [job()])
    assert "Run again" in button.text and "have been run" in text


@pytest.mark.parametrize("auto, predicted", [(True, running.AUTO_RUN_BELOW_S + 1), (False, 0.1)])
def test_a_long_run_or_one_without_auto_waits_for_the_button(live, seconds, auto, predicted):
    seconds(predicted)
    button, _ = gate(live, [job()], auto)
    assert "Run (about" in button.text and not live.running


def test_moved_controls_end_the_run_whatever_follows(live, seconds):
    seconds(0.1)
    gate(live, [job(1_000_000)])
    batch = live.batch
    assert gate(live, [job(1_000_000)]) == (None, "") and live.batch is batch
    seconds(1000)
    button, _ = gate(live, [job(seed=1)])
    batch.thread.join(60)
    assert "Run (about" in button.text and batch.status == "stopped"


def test_a_kernel_that_has_yet_to_be_compiled_is_announced(live, seconds, monkeypatch):
    state = {"compiled": False}
    monkeypatch.setattr(kernels, "compiled", lambda kernel: state["compiled"])
    monkeypatch.setattr(kernels, "compile_now", lambda kernel: state.update(compiled=True))
    monkeypatch.setattr(kernels, "installed", lambda package: True)
    seconds(1.0)
    assert "compile" not in gate(live, [job(attention="softmax")], auto=False)[0].text
    assert "compiles first" in gate(live, [job()], auto=False)[0].text
    assert "a kernel is compiled, once" in gate(live, [job()])[1]
    live.join(60)
    assert state["compiled"]


@pytest.mark.parametrize("jobs", [[], [CostJob(configs=(), n_repeats=3)]])
def test_nothing_chosen_is_told(live, jobs):
    assert gate(live, jobs) == (None, "Nothing is chosen: choose at least one attention.")


def test_what_the_machine_cannot_hold_is_refused(live, monkeypatch):
    monkeypatch.setattr(running, "together_s", lambda *_: running.FITS_BELOW_S + 1)
    monkeypatch.setattr(running, "refusal", lambda *_: "too large: lower it")
    assert gate(live, [job()]) == (None, "too large: lower it")
    assert not live.running


def test_while_a_run_is_under_way_there_are_stop_and_ticker(live, seconds):
    seconds(0.1)
    asked = running.asked(lambda _: [job(1_000_000)], {"device": "cpu"})
    auto = SimpleNamespace(value=True)

    run, stop, tick, shown = running.run_panel(live, asked, auto, lambda change: None)
    assert run is None and "Stop" in shown.text and tick is not None
    live.stop()
    live.join(60)
    run, stop, tick, shown = running.run_panel(live, asked, auto, lambda change: None)
    assert "Run on" in shown.text and stop is None and tick is None


def test_watching_announces_the_end_once(live):
    changes = []
    shown = running.watch(live, changes.append, None, lambda: mo.md("drawn")).text
    assert "drawn" in shown and "progress" not in shown
    live.start([job()], "cpu")
    live.join(60)
    for _ in range(3):
        running.watch(live, changes.append, None, lambda: mo.md(""))
    assert len(changes) == 1 and changes[0](4) == 5


def test_the_first_look_at_a_run_shows_its_first_step(live, monkeypatch):
    monkeypatch.setattr(running, "FIRST_SEEN_S", 60)
    live.start([job(n_steps=10_000)], "cpu")
    shown = running.watch(live, lambda change: None, SimpleNamespace(value=0), lambda: mo.md(""))
    assert re.search(r"step \d", shown.text)


def test_ticks_alone_draw_no_more_than_a_share_of_the_time(live, monkeypatch):
    """Drawing holds the interpreter, which a run needs too."""
    now, drawn = [0.0], []
    monkeypatch.setattr(running, "monotonic", lambda: now[0])

    def draw():
        drawn.append(now[0])
        now[0] += 0.3
        return mo.md(f"drawing {len(drawn)}")

    def look(tick):
        return running.watch(live, lambda change: None, tick, draw).text

    tick, told = SimpleNamespace(value=0), []
    for _ in range(40):
        tick.value += 1
        told.append(look(tick))
        now[0] += 0.25
    assert len(drawn) * 0.3 < 1.5 * running.DRAWN_SHARE * now[0] and len(drawn) > 1
    assert "drawing 1" in told[1] and f"drawing {len(drawn)}" in told[-1]
    n = len(drawn)
    look(tick)  # for another reason than the ticker
    look(SimpleNamespace(value=tick.value))  # of another run
    look(None)  # of none
    assert len(drawn) == n + 3


@pytest.mark.parametrize(
    "status, warning, shown",
    [
        ("failed", None, "The run failed: &lt;fuse&gt;"),
        ("stopped", None, "What was computed so far is shown below"),
        ("done", "disk <full>", "disk &lt;full&gt;"),
    ],
)
def test_how_a_run_ended_is_told(live, status, warning, shown):
    batch, live.warning = Batch(), warning
    batch.status, batch.error = status, "<fuse>"
    assert shown in markup(running.show_progress(live, batch))


def test_a_run_under_way_shows_how_far_it_is():
    live, batch = SimpleNamespace(running=True, warning=None), Batch()
    batch.fraction, batch.text, batch.seconds_left = 0.25, "step 1 < 4", 12.3
    shown = running.show_progress(live, batch).text
    assert 'value="0.2500"' in shown and "25%" in shown and "step 1 &lt; 4" in shown
    assert "about 12 s left" in shown


# --- cards


def verdict(met, **others):
    return Verdict("<i>headline</i>", (Criterion("criterion <1>", met, "5 & 6"),), **others)


@pytest.mark.parametrize(
    "met, status, sign",
    [(True, SUPPORTED, "✓"), (False, NOT_SUPPORTED, "✗"), (None, NOT_TOLD, "?")],
)
def test_a_card_shows_the_status_in_words_and_with_a_sign_besides_the_colour(met, status, sign):
    shown = verdict_cards.verdict_card("claim", [("Here", verdict(met))]).text
    assert f">{sign} {status}<" in shown and f"<li>{sign} criterion" in shown
    if met is not True:
        small = replace(verdict(met), untested=True)
        assert f">? {NOT_TESTED}<" in verdict_cards.verdict_card("claim", [("Here", small)]).text


def test_a_refuted_refutation_is_no_failure_and_a_live_run_is_not_inconclusive():
    shown = verdict_cards.verdict_card("claim", [("Here", verdict(False))], refutes=True).text
    assert f"≠ {verdict_cards.REFUTED}<" in shown and NOT_SUPPORTED not in shown
    shown = verdict_cards.verdict_card("claim", [(verdict_cards.THIS_MACHINE, verdict(None))]).text
    assert verdict_cards.SO_FAR in shown and NOT_TOLD not in shown


def test_a_card_shows_the_answer_and_folds_the_rest_as_text():
    columns = [("<Paper>", "says <b>yes</b>"), ("Here", verdict(True, answer="a < b holds"))]
    shown = verdict_cards.verdict_card("a < b", columns, {"Paper": "more <u>"}).text
    above, folded = shown.split("<details")
    assert "A &lt; b holds" in above and "headline" not in above and "more" not in above
    assert "&lt;i&gt;headline" in folded and "more &lt;u&gt;" in folded and "5 &amp; 6" in folded
    for raw in ("<b>", "<i>", "<u>", "<Paper>", "criterion <1>"):
        assert raw not in shown


def test_a_static_page_leaves_out_that_nothing_has_run(monkeypatch):
    nothing, ran = (
        [("Paper", "says"), (verdict_cards.THIS_MACHINE, said)]
        for said in (verdict_cards.NOTHING_RUN, verdict(True))
    )
    assert verdict_cards.THIS_MACHINE in verdict_cards.verdict_card("claim", nothing).text
    monkeypatch.setattr(layout, "in_static_page", lambda: True)
    for columns in (nothing, ran):  # of what is in the cache
        assert verdict_cards.THIS_MACHINE not in verdict_cards.verdict_card("claim", columns).text
    monkeypatch.setattr(layout, "has_own_run", lambda: True)
    assert verdict_cards.THIS_MACHINE in verdict_cards.verdict_card("claim", ran).text


def test_repeats_that_scatter_are_a_busy_machine_and_no_verdict():
    judged = []
    claim = SimpleNamespace(judge=lambda statement, rows: judged.append(rows) or "judged")
    recorded = Recorded(claim, {"scaling": []})
    statement = Statement(name="s", text="s", experiments=("scaling",))
    quiet, busy = cost_row(samples=(1.0, 1.0, 1.1)), cost_row(samples=(1.0, 3.0, 9.0))
    assert recorded._of_session(statement, [quiet, quiet, busy]) == "judged"
    assert "Machine busy, not judged" in recorded._of_session(statement, [quiet, busy, busy])
    assert len(judged) == 1


# --- the rest


def test_the_history_lists_finished_runs_latest_first(live):
    assert "Runs of this session" not in running.history(live).text
    live.start([job()], "cpu")
    live.join(60)
    live.finished.append(cost_row("out_of_memory", (), "needs 9 GB"))
    shown = running.history(live).text
    assert "Runs of this session (2)" in shown
    assert shown.index("out_of_memory") < shown.index("final_loss")


def test_samples_that_there_was_no_time_for_are_told():
    def measured(n_samples, asked):
        row = cost_row(samples=(1.0,) * n_samples)
        row["summary"][running.ASKED] = asked
        return row

    assert running.how_measured([]) == "" == running.how_measured([measured(7, 7)])
    told = running.how_measured([measured(7, 7), measured(1, 7), measured(3, 7)])
    assert told == "Repeats 7, of which the longest had time for 1."


def test_devices_have_a_tab_each_where_there_are_several():
    rows = [{"provenance": {"device_name": name}} for name in ("CPU", "GPU", "CPU")]
    shown = layout.device_tabs(rows, lambda some: mo.md(f"{len(some)} rows"))
    assert "marimo-tabs" in shown.text and "2 rows" in shown.text and "1 rows" in shown.text
    assert "marimo-tabs" not in layout.device_tabs(rows[:1], lambda some: mo.md("1")).text


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda one: one.name)
def test_a_page_links_to_the_start_and_to_its_neighbours_where_there_are_any(claim, monkeypatch):
    assert "Start</a>" not in claim.head().text  # served alone
    monkeypatch.setattr(layout, "_served_at", lambda: "convergence")
    links = claim.head().text
    assert '<a href="../">Start</a>' in links and 'href="../' in links
    monkeypatch.setattr(layout, "in_static_page", lambda: True)
    assert 'href="index.html"' in claim.head().text


def test_the_source_of_a_function_is_shown_without_its_docstring():
    lines = code.lines_of(Training.train_step).splitlines()
    assert lines[0].startswith("def train_step(") and lines[-1] == "    return loss.detach()"
    assert not any('"""' in line for line in lines)
    assert "train_step" in code.source(Training.train_step, "x^2").text
