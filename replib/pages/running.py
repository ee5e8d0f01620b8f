"""Runs of a page: what there is to press, how far they are, and what is drawn of them."""

import html
import math
from collections.abc import Callable, Mapping, Sequence
from time import monotonic
from typing import Any, NamedTuple

import marimo as mo

from replib.device import resolve_device
from replib.lab.run import Job, config_of, line_of
from replib.lab.store import Row
from replib.pages import layout, workers
from replib.pages.controls import attempt
from replib.pages.live import ASKED, Batch, Drawing, LiveRuns
from replib.pages.processor import COMPILE_S, kernel_to_compile, predicted_each, refusal, together_s

STATIC_RUN_BELOW_S = 600.0  # a report with parameters waits so long for its run
AUTO_RUN_BELOW_S = 60.0  # a reader who moves a slider waits so long without having asked
FITS_BELOW_S = 10.0  # so short a run has no time to fill the memory: to ask takes as long as a step
ENDS_WITHIN_S = 0.2  # a run, or what follows is predicted beside it
REDRAW_EVERY_S = 0.25
FIRST_SEEN_S = 0.3  # a page waits so long for the first step of a run: sooner than its next look
DRAWN_SHARE = 0.15  # of the time of a run
REDRAW_TIMINGS_EVERY_S = 1.0  # drawing takes a core from what is timed


class Asked(NamedTuple):
    """What settings ask for: the jobs, or what is wrong with the settings; and the device."""

    jobs: list[Job]
    problem: mo.Html | None
    device: str | None


def asked(build: Callable, settings: Mapping[str, Any]) -> Asked:
    """The jobs that `build` makes of the settings, none where it raises ValueError. In a cell
    before the cards, which need not wait for a prediction."""
    jobs, problem = attempt(build, settings)
    return Asked(jobs or [], problem, settings.get("device"))


def auto_switch() -> mo.ui.switch:
    """Whether short runs begin by themselves."""
    return mo.ui.switch(value=True, label="runs of less than a minute begin by themselves")


def run_panel(
    live: LiveRuns, asked: Asked, auto, announce, *beside
) -> tuple[Any, Any, Any, mo.Html]:
    """What there is to press: Run or Run again, or why there is none; while something is running
    Stop, and a ticker, which makes the cells that name it look again; and all of it as it is shown,
    with what stands `beside`.

    A run of other settings is ended. Where `auto` is on what takes less than AUTO_RUN_BELOW_S, and
    anything on CUDA, is started at once; not what a reader has stopped.

    Args:
        auto: the switch of `auto_switch`.
        announce: the setter of an `mo.state` counter, which is told when a run begins; it allows
            self loops, as the cell that shows the button is to be run again.
    """
    run, text = None, ""
    if asked.problem is None:
        run, text = gate(live, asked.jobs, auto.value, asked.device, announce)
        text = f"{text} {workers.where_computed(asked.jobs)}".strip()
    else:
        live.stop()
    if layout.in_static_page():
        return run, None, None, asked.problem or layout.plain(text)
    stop = tick = None
    if live.running:
        stop = mo.ui.button(label="Stop", kind="danger", on_change=lambda _: live.stop())
        every_s = REDRAW_TIMINGS_EVERY_S if live.measuring else REDRAW_EVERY_S
        tick = mo.ui.refresh(default_interval=every_s)
    buttons = [button for button in (run, stop) if button is not None]
    shown = [*buttons, layout.plain(text)] if text else buttons
    line = mo.hstack([*shown, *beside], justify="start", align="center", gap=1.5, wrap=True)
    shown = [part for part in (asked.problem, line, layout.unseen(tick)) if part is not None]
    return run, stop, tick, mo.vstack(shown)


def gate(
    live: LiveRuns, jobs: Sequence, auto: bool, device: str | None, announce=lambda change: None
):
    """A button that starts the jobs, None where they run or cannot, and a text beside it. See
    `run_panel`; in a static page nothing runs, unless it was asked for with parameters: then what
    has `auto` on runs now, to its end."""
    if layout.in_static_page():
        if layout.has_own_run() and auto and live.missing(jobs, device):
            _run_for_page(live, jobs, device)
        return None, how_measured(live.rows(jobs, device)) if layout.has_own_run() else ""

    def button(label: str, again: bool = False):
        def start(_) -> None:
            live.start(jobs, device, again, each)
            announce(lambda n: n + 1)

        return mo.ui.button(label=label, kind="success", on_change=start)

    if live.running:
        if live.is_of(jobs):
            return None, ""
        live.stop()
        live.join(ENDS_WITHIN_S)
    if not any(job.ids for job in jobs):
        return None, "Nothing is chosen: choose at least one attention."
    missing, each = live.missing(jobs, device), ()
    if not missing:
        told = how_measured(live.rows(jobs, device))
        return button("Run again", True), f"These settings have been run. {told}".strip()
    each, elsewhere = predicted_each(missing, device), workers.takes(missing)
    kernel = None if elsewhere else kernel_to_compile(missing, device)
    seconds = together_s(missing, each)
    fits = elsewhere or seconds < FITS_BELOW_S
    if not fits and (why_not := refusal(missing, device)):
        return None, why_not
    short = seconds < AUTO_RUN_BELOW_S or resolve_device(device).type == "cuda"
    if live.ended_early(jobs):
        return button("Run on"), ""
    if auto and short:
        live.start(jobs, device, seconds=each)
        once = f"First a kernel is compiled, once: about {_duration(COMPILE_S)}."
        return None, once if kernel else ""
    # Of a longer label a phone would show a part.
    told = "its time is not known yet" if math.isnan(seconds) else f"about {_duration(seconds)}"
    return button(f"Run ({told}{', compiles first' * bool(kernel)})"), ""


def _run_for_page(live: LiveRuns, jobs: Sequence, device: str | None) -> None:
    """Run jobs to their end, or until STATIC_RUN_BELOW_S have passed.

    Raises:
        ValueError: it would take longer by far, or failed.
    """
    missing = live.missing(jobs, device)
    seconds = together_s(missing, predicted_each(missing, device))
    if why_not := refusal(missing, device):
        raise ValueError(why_not)
    if seconds > STATIC_RUN_BELOW_S:
        raise ValueError(
            f"this run would take about {_duration(seconds)}, and a report waits for "
            f"{_duration(STATIC_RUN_BELOW_S)}: choose smaller parameters, or run it in the "
            "notebook first (what has been run is kept)"
        )
    live.start(jobs, device)
    ends = monotonic() + STATIC_RUN_BELOW_S
    while live.running:
        live.poll()
        live.join(timeout=REDRAW_EVERY_S)
        if monotonic() > ends:
            live.stop()
    if live.poll().status == "failed":
        raise ValueError(live.poll().error)


def how_measured(rows: Sequence[Row]) -> str:
    """That there was time for fewer samples than were asked for; empty where there was not."""
    timed = [
        row["summary"]
        for row in rows
        if row["outcome"] == "ok"
        and ASKED in row["summary"]
        and getattr(config_of(row), "span", None) != "stream"  # is timed once, token by token
    ]
    fewest = min((len(one["time_ms_samples"]) for one in timed), default=0)
    asked = max((one[ASKED] for one in timed), default=0)
    if fewest >= asked:
        return ""
    return f"Repeats {asked}, of which the longest had time for {fewest}."


def watch(live: LiveRuns, announce, tick, draw: Callable[[], Any]) -> mo.Html:
    """Look at the run: its progress now above what `draw` makes of it; once it has ended, let
    `announce` (the setter of an `mo.state` counter) update what depends on finished runs."""
    progress = live.poll()
    if live.running and (live.drawing is None or live.drawing.tick is not tick):
        progress.seen.wait(FIRST_SEEN_S)
    if live.just_ended():
        announce(lambda n: n + 1)
    return mo.vstack([show_progress(live, progress), _drawn(live, tick, draw)])


def _drawn(live: LiveRuns, tick, draw: Callable[[], Any]) -> mo.Html:
    """What `draw` makes, or made where the ticker alone asks again so soon that drawing, which
    holds the interpreter that the run needs too, would take more than a DRAWN_SHARE."""
    last, ticked = live.drawing, tick is not None and tick.value
    only_ticked = last is not None and tick is not None and last.tick is tick and last.at != ticked
    if only_ticked and monotonic() < last.until:
        live.drawing = last._replace(at=ticked)
        return last.shown
    began = monotonic()
    shown = mo.as_html(draw())
    ended = monotonic()
    until = ended + (ended - began) * (1 / DRAWN_SHARE - 1)
    live.drawing = Drawing(shown, tick, ticked, until)
    return shown


def show_progress(live: LiveRuns, progress: Batch | None) -> mo.Html:
    """A progress bar with its text; what went wrong, once it has."""
    if progress is None:
        return mo.md("")
    if progress.status == "failed":
        return layout.callout(f"The run failed: {progress.error}", "danger")
    if live.running:
        left = progress.seconds_left
        said = "" if math.isnan(left) else f"about {_duration(left)} left: "
        return layout.styled(
            '<div role="status" class="r-progress"><progress aria-label="progress of the run" '
            f'max="1" value="{progress.fraction:.4f}"></progress> '
            f"{progress.fraction:.0%} &nbsp; {html.escape(said + progress.text)}</div>"
        )
    if live.warning:
        return layout.callout(live.warning)
    if progress.status == "stopped":
        return mo.md(
            "Stopped. What was computed so far is shown below; *Run on* goes on from there."
        )
    return mo.md("")


def history(live: LiveRuns) -> mo.Html:
    """The finished runs of this session, the latest first."""
    if not live.finished:
        return mo.md("")
    lines = "".join(f"<li>{html.escape(line_of(row))}</li>" for row in reversed(live.finished))
    shown = layout.styled(f"<ul class='r-list'>{lines}</ul>")
    return mo.accordion({f"Runs of this session ({len(live.finished)})": shown})


def _duration(seconds: float) -> str:
    if seconds < 1:
        return "1 s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min"
