"""The marimo parts that several notebooks share: parameter panel, run panel, verdict card."""

import html
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from time import monotonic
from typing import Any, NamedTuple

import marimo as mo
import torch

from replib.device import resolve_device
from replib.lab import recorded
from replib.lab.run import Job, config_of, line_of
from replib.lab.store import Row
from replib.lab.timing import WORKS
from replib.lab.verdict import (
    INCONCLUSIVE,
    NOT_SUPPORTED,
    NOT_TESTED,
    SUPPORTED,
    Verdict,
    by_device,
)
from replib.pages import failures
from replib.pages.failures import STYLE
from replib.pages.live import (
    ASKED,
    COMPILE_S,
    Batch,
    Drawing,
    LiveRuns,
    kernel_to_compile,
    predicted_each,
    refusal,
    together_s,
)

failures.show_on_pages()

REFUTED, SO_FAR = "refuted", "so far"  # statuses of cards alone
NOTHING_RUN = "Nothing has run yet with these settings."
THIS_MACHINE = "This machine"  # the column of a card for runs of this session
STATIC_RUN_BELOW_S = 600.0  # a report with parameters waits so long for its run
AUTO_RUN_BELOW_S = 60.0  # a reader who moves a slider waits so long without having asked
FITS_BELOW_S = 10.0  # so short a run has no time to fill the memory: to ask takes as long as a step
ENDS_WITHIN_S = 0.2  # a run, or what follows is predicted beside it
REDRAW_EVERY_S = 0.25
FIRST_SEEN_S = 0.3  # a page waits so long for the first step of a run: sooner than its next look
DRAWN_SHARE = 0.15  # of the time of a run
REDRAW_TIMINGS_EVERY_S = 1.0  # drawing takes a core from what is timed
NONE = "none"  # in the URL, where no switch of several is on


@dataclass(frozen=True)
class Control:
    """A parameter of a panel: a slider over `values`, or a choice of several of them.

    `name` is also the parameter of the URL (`?seq_len=64`) and of the command line
    (`-- --seq-len 64`). A value reads as its entry in `labels`, where it has one; `refused` has the
    reason why a known value is not offered.
    """

    name: str
    label: str
    values: tuple
    default: Any
    labels: Mapping[str, str] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)

    @property
    def several(self) -> bool:
        return isinstance(self.default, tuple)

    @property
    def spellings(self) -> tuple[str, ...]:
        """The names that mean this control: `batch_size`, `batch-size`, `batch`; `steps`."""
        short = self.name.removeprefix("n_").removesuffix("_size")
        return tuple(dict.fromkeys((self.name, self.name.replace("_", "-"), short)))

    def read(self, text: Any) -> tuple[Any, str | None]:
        """The value that a text from outside means, and what to tell where it was changed."""
        if self.several:
            asked = text if isinstance(text, list) else str(text).split(",")
            known = tuple(value for value in self.values if value in asked)
            wrong = [self._why_not(str(one)) for one in asked if one not in self.values]
            used = known or self.default
            note = f"{self.label}: {', '.join(wrong)}, {', '.join(used)} used"
            return used, note if wrong else None
        if isinstance(text, list):
            text = text[-1] if text else ""
        if isinstance(self.default, str):
            if text in self.values:
                return text, None
            return self.default, f"{self.label}: {text} unknown, {self.default} used"
        try:
            asked = float(text)
            if math.isnan(asked):
                raise ValueError
            inside = min(max(asked, min(self.values)), max(self.values))
            nearest = min(self.values, key=lambda value: abs(value - inside))
        except (TypeError, ValueError, OverflowError):
            return self.default, f"{self.label}: {text!r} is no number, {self.default} used"
        if nearest == asked:
            return nearest, None
        return nearest, f"{self.label}: {text} is not offered, {nearest} used"

    def _why_not(self, value: str) -> str:
        if value in self.refused:
            return f"{value} cannot run here ({self.refused[value]})"
        return f"{value} unknown"


WORK_LABELS = WORKS
DEVICE = Control("device", "Device", ("auto", "cpu", *["cuda"] * torch.cuda.is_available()), "auto")


def initial_values(
    controls: Sequence[Control], *sources: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """The value of each control from the first source that has it, else its default; and notes
    on the values that had to be changed. Names may be written as in `Control.spellings`."""
    values, notes = {}, []
    for control in controls:
        values[control.name] = control.default
        for source in sources:
            spelled = [name for name in control.spellings if name in source]
            if spelled:
                value, note = control.read(source[spelled[0]])
                values[control.name] = value
                notes += [note] if note else []
                break
    return values, notes


def panel(
    controls: Sequence[Control], *others: Sequence[Control]
) -> tuple[mo.ui.dictionary, mo.Html]:
    """The elements of a panel, set from the URL, else from the command line; and the panel as it is
    shown, with what had to be changed said below. `others` are the notebook's other panels, whose
    parameters a static page may be asked for as well.

    Raises:
        ValueError: a static page was asked for with a parameter or a value that is not offered.
    """
    query, arguments = dict(mo.query_params().to_dict()), dict(mo.cli_args().to_dict())
    values, notes = initial_values(controls, query, arguments)
    everywhere = [*controls, *chain.from_iterable(others)]
    if in_static_page():
        check_asked(everywhere, _asked(), notes)
    elements = mo.ui.dictionary({c.name: _element(c, values[c.name]) for c in controls})
    elements.unsaid = {c.name: _query_text(c.default) for c in controls}
    return elements, _shown_panel(elements, values, notes)


def chosen(elements: mo.ui.dictionary, **others: Any) -> dict[str, Any]:
    """The settings of a panel, which are written to the URL, with others that are not."""
    share(elements.value, elements.unsaid)
    return elements.value | others


def check_asked(
    controls: Sequence[Control], names: Sequence[str], notes: Sequence[str] = ()
) -> None:
    """Refuse names that no control has, and values that had to be changed (`notes`).

    Raises:
        ValueError: says what there is.
    """
    known = {spelling for control in controls for spelling in control.spellings}
    unknown = [f"--{name} is not a parameter" for name in names if name not in known]
    wrong = [control for control in controls if any(n.startswith(control.label) for n in notes)]
    if unknown or notes:
        offered = [_offer(control) for control in (controls if unknown else wrong)]
        raise ValueError(f"{'; '.join([*unknown, *notes])}. Use " + ", ".join(offered))


def _offer(control: Control) -> str:
    """`--seq-len 32 | 64 | ... | 16384`"""
    values = [str(value) for value in control.values]
    if len(values) > 6 and not isinstance(control.values[0], str):
        values = [*values[:2], "...", *values[-1:]]
    name = control.name.replace("_", "-")
    return f"--{name} {','.join(values) if control.several else ' | '.join(values)}"


def _element(control: Control, value: Any):
    if control.several:
        return mo.ui.multiselect(
            control.values, value=list(value), label=control.label, full_width=True
        )
    if isinstance(control.default, str):
        texts = {value: control.labels.get(value, value) for value in control.values}
        options = {text: value for value, text in texts.items()}
        return mo.ui.dropdown(options, value=texts[value], label=control.label, full_width=True)
    return mo.ui.slider(
        steps=list(control.values),
        value=value,
        label=control.label,
        debounce=True,
        show_value=True,
        full_width=True,
    )


def _shown_panel(
    elements: mo.ui.dictionary, values: Mapping[str, Any], notes: Sequence[str]
) -> mo.Html:
    """The panel as a grid of its elements, which start from these values."""
    if in_static_page():
        return mo.callout(mo.Html(_static_text(values)))
    cells = "".join(map(_cell, elements.elements.values()))
    shown = styled(f'<div class="r-panel">{cells}</div>')
    return mo.vstack([shown, callout("; ".join(notes))]) if notes else shown


def _static_text(values: Mapping[str, Any]) -> str:
    text = "A static copy: the controls work in the notebook, <code>make run</code>."
    if not has_own_run():
        return text
    setting = ", ".join(
        f"{name} {','.join(value) if isinstance(value, list | tuple) else value}"
        for name, value in values.items()
    )
    return f"Run for this page on this setting: {html.escape(setting)}.<br>{text}"


def _cell(element) -> str:
    """An element in the grid; a choice of many has a line of its own, to show what is chosen."""
    many = isinstance(element, mo.ui.multiselect) and len(element.options) > 2
    return f"<div{' class=r-wide' * many}>{element}</div>"


def page_head(notebook: str, pages: Mapping[str, str]) -> mo.Html:
    """Links to the start page and to the pages before and after a notebook's; nothing where there
    are none, as of a notebook that is served alone.

    Args:
        pages: the notebook of each page by its short address, in order.
    """
    if in_static_page():
        places = {address: f"{stem}.html" for address, stem in pages.items()}
        return styled(links(notebook, pages, "index.html", places))
    return styled(links(notebook, pages)) if _served_at() in pages else mo.md("")


def links(
    notebook: str,
    pages: Mapping[str, str],
    home: str = "../",
    places: Mapping[str, str] | None = None,
) -> str:
    """The links of `page_head` as HTML, to the places of pages by their short address; on the
    server's pages if none are given."""
    places = places or {address: f"../{address}" for address in pages}
    addresses = list(pages)
    here = list(pages.values()).index(notebook)
    shown = [f'<a href="{home}">Start</a>']
    if here:
        before = addresses[here - 1]
        shown.append(f'<a rel="prev" href="{places[before]}">← {before.capitalize()}</a>')
    if here + 1 < len(addresses):
        after = addresses[here + 1]
        shown.append(f'<a rel="next" href="{places[after]}">{after.capitalize()} →</a>')
    return f'<nav class="r-nav" aria-label="Pages">{"".join(shown)}</nav>'


def _served_at() -> str:
    """The last part of the page's address; "" where there is none."""
    request = mo.app_meta().request if mo.running_in_notebook() else None
    path = request.url["path"].removesuffix("/ws") if request else ""
    return path.strip("/").rpartition("/")[2]


def styled(text: str) -> mo.Html:
    """HTML with the classes of `style.css`."""
    return mo.Html(f"<style>{STYLE}</style>{text}")


def grid(cells: Iterable[Any], least: str, label: str = "") -> mo.Html:
    """Cells side by side, as many as are at least so wide."""
    role = f'role="group" aria-label="{label}" ' if label else ""
    texts = (cell if isinstance(cell, str) else mo.as_html(cell).text for cell in cells)
    body = "".join(f"<div>{text}</div>" for text in texts)
    return styled(f'<div class="r-grid" {role}style="--least:{least}">{body}</div>')


def switches(control: Control, on: Sequence[str]) -> mo.ui.dictionary:
    """A switch for each value of a control, by its label."""
    names = (name for name in control.values if name != NONE)
    elements = mo.ui.dictionary(
        {n: mo.ui.switch(value=n in on, label=control.labels[n]) for n in names}
    )
    elements.unsaid = {control.name: _query_text(control.default)}
    return elements


def asked_for(control: Control) -> tuple[str, ...]:
    """The values of a control that the URL or the command line asks for, else its default."""
    sources = dict(mo.query_params().to_dict()), dict(mo.cli_args().to_dict())
    values, notes = initial_values([control], *sources)
    if in_static_page():
        check_asked([control], (), notes)
    return tuple(name for name in values[control.name] if name != NONE)


def switched_on(elements: mo.ui.dictionary, name: str) -> tuple[str, ...]:
    """The switches that are on, which are also written to the URL, as the parameter `name`."""
    on = tuple(switch for switch, value in elements.value.items() if value)
    share({name: on or (NONE,)}, elements.unsaid)
    return on


def plain(text: str) -> mo.Html:
    """Words from outside, shown as they are: as Markdown, a shared URL could bring links along."""
    return mo.Html(f"<span>{html.escape(text)}</span>")


def callout(text: str, kind: str = "warn") -> mo.Html:
    return mo.callout(plain(text), kind=kind)


def share(values: Mapping[str, Any], unsaid: Mapping[str, str] | None = None) -> None:
    """Write the values to the URL, so that the address bar holds the present setting; what is
    `unsaid`, the defaults, only where others stand there, as each change is a step of Back."""
    query = mo.query_params()
    for name, value in values.items():
        text = _query_text(value)
        if query.get(name, (unsaid or {}).get(name)) != text:
            query.set(name, text)


def _query_text(value: Any) -> str:
    return ",".join(value) if isinstance(value, list | tuple) else str(value)


def live_only(*parts) -> mo.Html:
    """Parts one above the other; nothing in a static page that has no run of its own to show."""
    return mo.md("") if in_static_page() and not has_own_run() else mo.vstack(parts)


def inputs(*elements) -> mo.Html:
    """Elements side by side; nothing in a static page, where they would do nothing."""
    return mo.md("") if in_static_page() else mo.hstack(elements, justify="start", wrap=True)


def attempt(build: Callable, settings: Mapping[str, Any]) -> tuple[Any, mo.Html | None]:
    """What is built of the settings; none, and what is wrong with them, where it cannot be."""
    try:
        return build(settings), None
    except ValueError as error:
        return None, callout(str(error))


def unread(*experiments: str) -> mo.Html:
    """What of recorded rows is not on the page, as the code cannot use it or computes otherwise
    since; nothing where all is."""
    asked = (ask(name) for name in experiments for ask in (recorded.skipped, recorded.left_out))
    said = [text for text in asked if text]
    return mo.vstack([callout(text) for text in said]) if said else mo.md("")


def device_tabs(rows: Sequence[Row], show: Callable[[Sequence[Row]], Any]) -> mo.Html:
    """What `show` makes of the rows of each device, a tab each where there are several."""
    devices = by_device(rows)
    if len(devices) < 2:
        return mo.as_html(show(rows))
    return mo.ui.tabs({device: show(some) for device, some in devices.items()})


def in_static_page() -> bool:
    """Whether the page is being exported (`-- --static`) and has no kernel behind it later."""
    return "--static" in sys.argv or "static" in _arguments()


def _arguments() -> dict[str, Any]:
    """What the command line gave the notebook; nothing outside of one."""
    return mo.cli_args().to_dict() if mo.running_in_notebook() else {}


def _asked() -> list[str]:
    """The parameters that a command line names, beside `--static`."""
    return [name for name in _arguments() if name != "static"]


def has_own_run() -> bool:
    """Whether a static page was asked for with parameters, and so shows a run with them."""
    return in_static_page() and bool(_asked())


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
    else:
        live.stop()
    if in_static_page():
        return run, None, None, asked.problem or plain(text)
    stop = tick = None
    if live.running:
        stop = mo.ui.button(label="Stop", kind="danger", on_change=lambda _: live.stop())
        every_s = REDRAW_TIMINGS_EVERY_S if live.measuring else REDRAW_EVERY_S
        tick = mo.ui.refresh(default_interval=every_s)
    buttons = [button for button in (run, stop) if button is not None]
    shown = [*buttons, plain(text)] if text else buttons
    line = mo.hstack([*shown, *beside], justify="start", align="center", gap=1.5, wrap=True)
    shown = [part for part in (asked.problem, line, unseen(tick)) if part is not None]
    return run, stop, tick, mo.vstack(shown)


def unseen(element) -> mo.Html:
    """An element that works and is not shown, such as a ticker; nothing where it is None."""
    return styled(f'<div class="r-hidden">{"" if element is None else element}</div>')


def auto_switch() -> mo.ui.switch:
    """Whether short runs begin by themselves."""
    return mo.ui.switch(value=True, label="run by itself when a control is moved")


def gate(
    live: LiveRuns, jobs: Sequence, auto: bool, device: str | None, announce=lambda change: None
):
    """A button that starts the jobs, None where they run or cannot, and a text beside it. See
    `run_panel`; in a static page nothing runs, unless it was asked for with parameters: then what
    has `auto` on runs now, to its end."""
    if in_static_page():
        if has_own_run() and auto and live.missing(jobs, device):
            _run_for_page(live, jobs, device)
        return None, how_measured(live.rows(jobs, device)) if has_own_run() else ""

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
    each, kernel = predicted_each(missing, device), kernel_to_compile(missing, device)
    seconds = together_s(missing, each)
    if not seconds < FITS_BELOW_S and (why_not := refusal(missing, device)):
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
        return callout(f"The run failed: {progress.error}", "danger")
    if live.running:
        left = progress.seconds_left
        said = "" if math.isnan(left) else f"about {_duration(left)} left: "
        return styled(
            '<div role="status" class="r-progress"><progress aria-label="progress of the run" '
            f'max="1" value="{progress.fraction:.4f}"></progress> '
            f"{progress.fraction:.0%} &nbsp; {html.escape(said + progress.text)}</div>"
        )
    if live.warning:
        return callout(live.warning)
    if progress.status == "stopped":
        return mo.md("Stopped; what was computed is kept and shown below.")
    return mo.md("")


def _duration(seconds: float) -> str:
    if seconds < 1:
        return "1 s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min"


# A sign and the classes of `style.css`.
_STATUS = {
    SUPPORTED: ("✓", "r-status r-supported"),
    NOT_SUPPORTED: ("✗", "r-status r-not-supported"),
    NOT_TESTED: ("?", "r-status"),
    INCONCLUSIVE: ("?", "r-status"),
    REFUTED: ("≠", "r-status r-refuted"),
    SO_FAR: ("…", "r-status"),
}


def verdict_card(
    claim: str,
    columns: Sequence[tuple[str, Verdict | str]],
    more: Mapping[str, str] | None = None,
    refutes: bool = False,
) -> mo.Html:
    """A claim, and side by side what each source says of it: a text, or a verdict. What else they
    say (`more`), the headlines and the criteria are folded below. A static page says of
    THIS_MACHINE what it ran for that page alone, and not what is in the cache."""
    if in_static_page():
        columns = [
            (title, said)
            for title, said in columns
            if title != THIS_MACHINE or (has_own_run() and said != NOTHING_RUN)
        ]
    cells = "".join(_column(title, said, refutes) for title, said in columns)
    below = "".join(_folded(f"<p>{html.escape(x)}</p>", by) for by, x in (more or {}).items())
    below += "".join(
        _folded(verdict_lines(said), title) for title, said in columns if isinstance(said, Verdict)
    )
    said = html.escape(claim)
    return styled(
        f'<section role="group" class="r-card" aria-label="Verdict: {said}"><p>{said}</p>'
        f'<div class="r-columns">{cells}</div><details class="r-criteria">'
        f"<summary>Criteria and evidence</summary>{below}</details></section>"
    )


def _column(title: str, said: Verdict | str, refutes: bool) -> str:
    if isinstance(said, str):
        body = f"<p>{html.escape(said)}</p>"
    else:
        body = verdict_html(said, refutes, live=title == THIS_MACHINE)
    return f'<div class="r-column"><strong>{html.escape(title)}</strong>{body}</div>'


def _folded(body: str, title: str) -> str:
    return f"<strong>{html.escape(title)}</strong>{body}"


def verdict_html(said: Verdict, refutes: bool = False, live: bool = False) -> str:
    """A verdict's status and answer. A negative result that is not supported is refuted; what
    cannot be told of runs of this session may be told after more of them."""
    status = said.status
    if refutes and status == NOT_SUPPORTED:
        status = REFUTED
    if live and status == INCONCLUSIVE:
        status = SO_FAR
    sign, classes = _STATUS[status]
    return f'<p><span class="{classes}">{sign} {status}</span></p><p>{html.escape(said.says)}</p>'


def verdict_lines(said: Verdict) -> str:
    """A verdict's headline where it is not its answer, its criteria, each with whether it is met,
    and its evidence."""
    apart = bool(said.answer) and said.answer != said.headline
    lines = [said.headline] * apart + list(said.lines)
    items = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
    return f"<ul class='r-list'>{items}</ul>"


def history(live: LiveRuns) -> mo.Html:
    """The finished runs of this session, the latest first."""
    if not live.finished:
        return mo.md("")
    lines = "".join(f"<li>{html.escape(line_of(row))}</li>" for row in reversed(live.finished))
    shown = styled(f"<ul class='r-list'>{lines}</ul>")
    return mo.accordion({f"Runs of this session ({len(live.finished)})": shown})
