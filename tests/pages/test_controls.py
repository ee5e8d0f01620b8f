"""The parts that notebooks share: nothing from outside breaks a panel, a gate or a card."""

import shutil
from dataclasses import replace
from types import SimpleNamespace

import marimo as mo
import pytest
import torch
from shown import cost_row, job, markup

from replib import kernels
from replib.claims import cost_page
from replib.lab.run import CostJob
from replib.lab.verdict import (
    INCONCLUSIVE,
    NOT_SUPPORTED,
    NOT_TESTED,
    SUPPORTED,
    Criterion,
    Verdict,
    device_names,
)
from replib.pages import controls
from replib.pages.controls import Control, initial_values
from replib.pages.live import Progress

N = Control("seq_len", "Sequence length", (8, 16, 32, 64), 32)
RATE = Control("lr", "Learning rate", (3e-4, 1e-3, 5e-3), 5e-3)
KINDS = Control("attention", "Attention", ("softmax", "linear"), ("softmax",))
WORK = Control("work", "Work", ("forward", "forward_backward"), "forward")
KERNEL = Control(
    "variants", "Kernel", ("plain", "cpu"), ("cpu",), refused={"cuda": "no <CUDA> device: use cpu"}
)
STEPS = Control("n_steps", "Steps", (50, 100), 50)


@pytest.mark.parametrize(
    "control, text, value",
    [
        (N, "64", 64),
        (N, "64.0", 64),
        (N, 16, 16),
        (N, ["8", "64"], 64),
        (RATE, "0.001", 1e-3),
        (RATE, "1e-3", 1e-3),
        (KINDS, "linear", ("linear",)),
        (KINDS, "linear,softmax", ("softmax", "linear")),
        (KINDS, ["linear", "softmax"], ("softmax", "linear")),
        (WORK, "forward_backward", "forward_backward"),
        (WORK, ["forward_backward"], "forward_backward"),
    ],
)
def test_a_value_on_offer_is_taken_without_a_note(control, text, value):
    assert control.read(text) == (value, None)


@pytest.mark.parametrize(
    "control, text, value",
    [
        (N, "0", 8),
        (N, "-1", 8),
        (N, "1000000000", 64),
        (N, "1e300", 64),
        (N, "1e999", 64),
        (N, "inf", 64),
        (N, "-inf", 8),
        (N, "9" * 500, 64),
        (N, 10**400, 32),
        (N, "40", 32),
        (N, "nan", 32),
        (N, "abc", 32),
        (N, "", 32),
        (N, None, 32),
        (N, [], 32),
        (N, ["64", "abc"], 32),
        (N, "<script>", 32),
        (RATE, "-1", 3e-4),
        (RATE, "0.004", 5e-3),
        (KINDS, "reformer", ("softmax",)),
        (KINDS, "reformer,linear", ("linear",)),
        (KINDS, "", ("softmax",)),
        (KINDS, [], ("softmax",)),
        (KINDS, ["<b>"], ("softmax",)),
        (KERNEL, "cuda", ("cpu",)),
        (KERNEL, "cuda,plain", ("plain",)),
        (WORK, "sideways", "forward"),
        (WORK, "", "forward"),
        (WORK, [], "forward"),
        (WORK, 7, "forward"),
    ],
)
def test_any_other_value_is_replaced_by_one_on_offer_and_the_note_says_which(control, text, value):
    found, note = control.read(text)
    assert found == value
    if control.several and text == []:
        return  # nothing was asked for
    assert note.startswith(f"{control.label}: ")
    assert str(value if not control.several else ", ".join(value)) in note and "used" in note


def test_a_value_that_cannot_be_had_here_is_told_with_the_reason():
    said = "Kernel: cuda cannot run here (no <CUDA> device: use cpu), opencl unknown, plain used"
    assert KERNEL.read("cuda,opencl,plain") == (("plain",), said)


def test_the_url_goes_before_the_command_line_and_both_before_the_default():
    url, line = {"seq_len": "64"}, {"seq-len": 8, "lr": 1e-3}
    values, notes = initial_values([N, RATE, WORK], url, line)
    assert values == {"seq_len": 64, "lr": 1e-3, "work": "forward"} and notes == []
    assert initial_values([N], {}, {}) == ({"seq_len": 32}, [])
    assert initial_values([N], {"seq-len": "16"}) == initial_values([N], {"seq_len": "16"})


def test_a_wrong_value_of_the_url_is_told_and_not_made_up_from_the_command_line():
    values, notes = initial_values([N], {"seq_len": "abc"}, {"seq_len": 8})
    assert values == {"seq_len": 32} and len(notes) == 1 and "'abc'" in notes[0]


def test_a_misspelt_name_of_the_url_is_told_on_the_panel_that_it_is_close_to():
    names = ["seqlen", "seq-len", "lrate", "file", "n_step"]
    assert controls._misspelt(names, [N, RATE], [N, RATE, STEPS]) == [
        "seqlen is not a parameter: use seq_len"
    ]
    assert controls._misspelt(names, [STEPS], [N, RATE, STEPS]) == [
        "n_step is not a parameter: use n_steps"
    ]


def test_the_steps_of_the_url_may_be_called_steps():
    values, notes = initial_values([STEPS, RATE], {"steps": "abc", "lr": "-1"})
    assert values == {"n_steps": 50, "lr": 3e-4}
    assert len(notes) == 2
    assert initial_values([STEPS], {"steps": "100"}) == ({"n_steps": 100}, [])


ALL = [N, RATE, KINDS, WORK, controls.DEVICE]


def test_a_panel_starts_from_the_url_and_offers_every_value(page):
    page.url.update(seq_len="16", attention="linear")
    elements, shown = controls.panel(ALL)
    expected = {"seq_len": 16, "lr": 5e-3, "attention": ["linear"], "work": "forward"}
    assert elements.value == expected | {"device": "auto"}
    assert elements.elements["seq_len"].steps == list(N.values)
    assert all(control.label in shown.text for control in ALL) and "used" not in shown.text


def test_a_static_page_refuses_what_no_panel_of_its_notebook_has(page, monkeypatch):
    monkeypatch.setattr(controls, "in_static_page", lambda: True)
    monkeypatch.setattr(controls, "_asked", lambda: ["seq-len", "steps"])
    controls.panel([N], [STEPS])
    controls.panel([STEPS], [N])
    with pytest.raises(ValueError, match=r"^--steps is not a parameter\. Use --seq-len 8 \| 16"):
        controls.panel([N], [KINDS])


def test_notes_are_shown_as_text_whatever_they_hold(page):
    page.url.update(seq_len="<img src=x onerror=alert(1)>", lr="[x](javascript:alert(1))")
    shown = markup(controls.panel(ALL)[1])
    assert "&lt;img src=x onerror=alert(1)&gt;" in shown  # what was wrong is told
    assert "[x](javascript:alert(1))" in shown
    assert "<img" not in shown and "href" not in shown


def test_settings_are_shared_through_the_url_and_read_back(page):
    elements, _ = controls.panel(ALL)
    settings = elements.value | {"seq_len": 64, "attention": ["softmax", "linear"]}
    controls.share(settings)
    assert page.url["attention"] == "softmax,linear"
    again, shown = controls.panel(ALL)
    assert again.value == settings and "used" not in shown.text


def test_jobs_that_cannot_be_are_explained_instead():
    def build(settings):
        raise ValueError("heads <3> do not fit")

    jobs, problem = controls.attempt(build, {})
    assert jobs is None and "heads &lt;3&gt; do not fit" in markup(problem)
    assert controls.attempt(lambda settings: [1], {}) == ([1], None)


def test_a_value_is_shown_by_its_label_and_shared_by_its_name(page):
    elements, _ = controls.panel([cost_page.WORK])
    assert elements.value == {"work": "forward_backward"}
    assert list(elements.elements["work"].options) == ["forward", "forward and backward"]
    controls.share(elements.value)
    assert page.url["work"] == "forward_backward"


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
    assert "linear cpu" not in cost_page.variants().default


# --- the gate


@pytest.fixture
def seconds(monkeypatch):
    """Set what a run is predicted to take."""
    return lambda value: monkeypatch.setattr(controls, "predicted_seconds", lambda *_: value)


def gate(live, jobs, auto=True):
    return controls.gate(live, jobs, auto=auto, device="cpu")


@pytest.mark.parametrize("status", ["stopped", "failed"])
def test_what_was_stopped_or_failed_does_not_start_again_by_itself(live, seconds, status):
    seconds(0.1)
    gate(live, [job()])
    live.stop()
    live.join(60)
    live.finished.clear()  # as if it had ended before its first row
    shutil.rmtree(live.folder, ignore_errors=True)
    live.poll().status = status
    button, text = gate(live, [job()])
    assert text is None and "Run (about" in button.text
    assert gate(live, [job(seed=1)])[0] is None  # other settings do


def test_a_short_run_starts_by_itself(live, seconds):
    seconds(4.9)
    button, text = gate(live, [job()])
    assert button is None and "by itself" in text
    live.join(60)
    assert len(live.finished) == 1
    button, text = gate(live, [job()])
    assert button is None and "have been run" in text


@pytest.mark.parametrize("predicted", [0.1, 60])
def test_a_kernel_that_has_yet_to_be_compiled_is_announced(live, seconds, monkeypatch, predicted):
    state = {"compiled": False}
    monkeypatch.setattr(kernels, "compiled", lambda kernel: state["compiled"])
    monkeypatch.setattr(kernels, "compile_now", lambda kernel: state.update(compiled=True))
    monkeypatch.setattr(kernels, "installed", lambda package: True)
    seconds(predicted)
    button, text = gate(live, [job(attention="softmax")], auto=False)
    assert "compile" not in button.text  # softmax has no such kernel
    button, text = gate(live, [job()])
    told = text or button.text
    assert "after about 15 s to compile the cpu kernel, once" in told or "compiles first" in told
    assert live.running == (predicted < controls.AUTO_RUN_BELOW_S)
    live.join(60)
    assert state["compiled"] == (predicted < controls.AUTO_RUN_BELOW_S)


@pytest.mark.parametrize("predicted, auto", [(5.1, True), (0.1, False)])
def test_a_long_run_or_one_without_auto_waits_for_the_button(live, seconds, predicted, auto):
    seconds(predicted)
    button, text = gate(live, [job()], auto)
    assert text is None and not live.running
    assert ("about 5 s" if auto else "about 1 s") in button.text


def test_the_button_asks_for_the_time_of_what_is_missing_alone(live, monkeypatch):
    live.start([job()], "cpu")
    live.join(60)
    asked = []
    monkeypatch.setattr(controls, "predicted_seconds", lambda jobs, _: asked.append(jobs) or 60)
    gate(live, [job(), job(seed=1)])
    assert asked == [[job(seed=1)]]


@pytest.mark.parametrize("jobs", [[], [CostJob(configs=(), n_repeats=3)]])
def test_nothing_chosen_is_told(live, jobs):
    assert gate(live, jobs) == (None, "Nothing is chosen: choose at least one attention.")


def test_what_the_machine_cannot_hold_is_refused_by_the_gate(live, monkeypatch):
    monkeypatch.setattr(controls, "refusal", lambda *_: "too large: lower it")
    assert gate(live, [job()]) == (None, "too large: lower it")
    assert not live.running


def test_while_a_run_is_under_way_there_are_stop_and_ticker_and_no_other_start(live):
    assert controls.stop_button(live) is None and controls.ticker(live) is None
    live.start([job(1_000_000)], "cpu")
    button, text = gate(live, [job(seed=1)])
    assert button is None and "under way" in text
    stop, tick = controls.stop_button(live), controls.ticker(live)
    assert "Stop" in controls.show_stop(stop, tick).text
    live.stop()
    live.join(60)
    assert controls.stop_button(live) is None


def test_watching_announces_the_end_once(live):
    changes = []
    assert controls.watch(live, changes.append).text == mo.md("").text
    live.start([job()], "cpu")
    live.join(60)
    for _ in range(3):
        controls.watch(live, changes.append)
    assert len(changes) == 1 and changes[0](4) == 5


@pytest.mark.parametrize(
    "progress, warning, shown",
    [
        (Progress(status="failed", error="<fuse>"), None, "The run failed: &lt;fuse&gt;"),
        (Progress(status="stopped"), None, "what was computed is kept"),
        (Progress(status="done"), "disk <full>", "disk &lt;full&gt;"),
    ],
)
def test_how_a_run_ended_is_told(live, progress, warning, shown):
    live.warning = warning
    assert shown in markup(controls.show_progress(live, progress))


def test_a_run_under_way_shows_how_far_it_is():
    running = SimpleNamespace(running=True, warning=None)
    shown = controls.show_progress(running, Progress("running", 0.25, "step 1 < 4")).text
    assert 'value="0.2500"' in shown and "25%" in shown and "step 1 &lt; 4" in shown


# --- cards and tables


def verdict(met):
    return Verdict("<i>headline</i>", (Criterion("criterion <1>", met, "5 & 6"),))


@pytest.mark.parametrize(
    "met, status, sign",
    [(True, SUPPORTED, "✓"), (False, NOT_SUPPORTED, "✗"), (None, INCONCLUSIVE, "?")],
)
def test_a_card_shows_the_status_in_words_and_with_a_sign_besides_the_colour(met, status, sign):
    shown = controls.verdict_card("claim", [("Here", verdict(met))]).text
    assert f">{sign} {status}<" in shown
    assert f"<li>{sign} criterion" in shown
    small = replace(verdict(met), untested=True)
    if met is not True:
        shown = controls.verdict_card("claim", [("Here", small)]).text
        assert f">? {NOT_TESTED}<" in shown


def test_a_card_shows_texts_as_texts():
    columns = [("<Paper>", "says <b>yes</b>"), ("Here", verdict(True))]
    shown = controls.verdict_card("a < b", columns).text
    for raw in ("<b>yes", "<i>", "<Paper>", "a < b", "criterion <1>", "5 & 6"):
        assert raw not in shown
    for escaped in (
        "&lt;Paper&gt;",
        "says &lt;b&gt;yes",
        "a &lt; b",
        "&lt;i&gt;headline",
        "5 &amp; 6",
    ):
        assert escaped in shown


def test_the_history_lists_finished_runs_latest_first(live):
    assert "outcome" not in controls.history(live).text
    live.start([job()], "cpu")
    live.join(60)
    live.finished.append(cost_row("out_of_memory", (), "needs 9 GB"))
    diverged = dict(live.finished[0], outcome="diverged")
    diverged["summary"] = diverged["summary"] | {"final_loss": None}
    live.finished.append(diverged)
    shown = controls.history(live).text
    assert "Runs of this session (3)" in shown
    places = [shown.index(word) for word in ("diverged", "needs 9 GB", "nats a token")]
    assert places == sorted(places)


def measured(n_samples, asked, threads=controls.ALL_THREADS):
    row = cost_row(samples=(1.0,) * n_samples)
    row["summary"][controls.ASKED], row["provenance"]["threads"] = asked, threads
    return row


def test_samples_that_there_was_no_time_for_are_told():
    assert controls.how_measured([]) == "" == controls.how_measured([measured(7, 7)])
    told = controls.how_measured([measured(7, 7), measured(1, 7), measured(3, 7)])
    assert told == "Repeats 7, of which the longest had time for 1."


def test_a_thread_that_was_left_to_the_page_is_told(monkeypatch):
    monkeypatch.setattr(controls, "ALL_THREADS", 2)
    told = controls.how_measured([measured(7, 7, threads=1)])
    assert told == "Measured on 1 of 2 threads: one is left to the page."


def test_a_page_with_a_run_of_its_own_tells_how_it_was_measured(live, monkeypatch):
    monkeypatch.setattr(controls, "in_static_page", lambda: True)
    monkeypatch.setattr(controls, "has_own_run", lambda: True)
    monkeypatch.setattr(live, "missing", lambda *_: [])
    monkeypatch.setattr(live, "rows", lambda *_: [measured(3, 7)])
    shown = controls.show_gate(*gate(live, [job()]))
    assert "Repeats 7, of which the longest had time for 3." in shown.text


def test_device_names_are_those_of_the_rows():
    assert device_names([]) == "nothing yet"
    rows = [cost_row(device="B"), cost_row(device="A"), cost_row(device="B")]
    assert device_names(rows) == "A, B"


def test_durations_are_rounded_for_reading():
    texts = [controls._duration(s) for s in (0.01, 12.3, 89, 600)]
    assert texts == ["1 s", "12 s", "89 s", "10 min"]


def test_devices_have_a_tab_each_where_there_are_several():
    rows = [{"provenance": {"device_name": name}} for name in ("CPU", "GPU", "CPU")]
    shown = controls.device_tabs(rows, lambda some: mo.md(f"{len(some)} rows"))
    assert "marimo-tabs" in shown.text and "CPU" in shown.text and "GPU" in shown.text
    assert "2 rows" in shown.text and "1 rows" in shown.text
    assert "marimo-tabs" not in controls.device_tabs(rows[:1], lambda some: mo.md("1")).text


def test_a_static_page_leaves_out_that_nothing_has_run(monkeypatch):
    nothing, ran = (
        [("Paper", "says"), (controls.THIS_MACHINE, said)]
        for said in (controls.NOTHING_RUN, verdict(True))
    )
    assert controls.THIS_MACHINE in controls.verdict_card("claim", nothing).text
    monkeypatch.setattr(controls, "in_static_page", lambda: True)
    for columns in (nothing, ran):  # of what is in the cache
        assert controls.THIS_MACHINE not in controls.verdict_card("claim", columns).text
    monkeypatch.setattr(controls, "has_own_run", lambda: True)
    assert controls.THIS_MACHINE not in controls.verdict_card("claim", nothing).text
    assert controls.THIS_MACHINE in controls.verdict_card("claim", ran).text
