"""The marimo parts that several notebooks share: parameter panel, run gate, verdict card."""

import html
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import chain
from time import monotonic
from typing import Any

import marimo as mo
import torch

from replib.device import resolve_device
from replib.lab import recorded
from replib.lab.run import config_of
from replib.lab.store import Row
from replib.lab.text import LEFT, as_text, markdown_table
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
    ALL_THREADS,
    ASKED,
    COMPILE_S,
    LiveRuns,
    Progress,
    kernel_to_compile,
    predicted_seconds,
    refusal,
)

failures.show_on_pages()

REFUTED, SO_FAR = "refuted", "so far"  # statuses of cards alone
NOTHING_RUN = "Nothing has run yet with the settings below."
THIS_MACHINE = "This machine, settings below"  # the column of a card for runs of this session
STATIC_RUN_BELOW_S = 600.0  # a report with parameters waits so long for its run
AUTO_RUN_BELOW_S = 5.0  # a reader who moves a slider waits so long without having asked
REDRAW_EVERY_S = 0.25
NONE = "none"  # in the URL, where no switch of several is on
REDRAW_TIMINGS_EVERY_S = 1.0  # drawing takes a core from what is timed


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


WORK_LABELS = {"forward": "forward", "forward_backward": "forward and backward"}
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
    notes += _misspelt(query, controls, everywhere)
    elements = mo.ui.dictionary({c.name: _element(c, values[c.name]) for c in controls})
    return elements, _shown_panel(elements, values, notes)


def chosen(elements: mo.ui.dictionary, **others: Any) -> dict[str, Any]:
    """The settings of a panel, which are written to the URL, with others that are not."""
    share(elements.value)
    return elements.value | others


def _misspelt(
    names: Iterable[str], controls: Sequence[Control], everywhere: Sequence[Control]
) -> list[str]:
    """Notes on names that nothing on the page has, but that are close to one of these controls."""
    known = {spelling for control in everywhere for spelling in control.spellings}
    own = [spelling for control in controls for spelling in control.spellings]
    close = {name: get_close_matches(name, own, 1, 0.75) for name in names if name not in known}
    return [f"{name} is not a parameter: use {found[0]}" for name, found in close.items() if found]


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


def page_head(claim: str) -> mo.Html:
    """Links to the start page and to the pages before and after that of a claim; nothing where
    there are none, as of a notebook that is served alone."""
    from replib.claims import CLAIMS, PAGES

    notebook = next(one.notebook for one in CLAIMS if one.name == claim)
    if in_static_page():
        home, places = "index.html", {address: f"{stem}.html" for address, stem in PAGES.items()}
    elif _served_at() in PAGES:
        home, places = "../", {address: f"../{address}" for address in PAGES}
    else:
        return mo.md("")
    addresses = list(PAGES)
    here = list(PAGES.values()).index(notebook)
    links = [f'<a href="{home}">Start</a>']
    if here:
        before = addresses[here - 1]
        links.append(f'<a rel="prev" href="{places[before]}">← {before.capitalize()}</a>')
    if here + 1 < len(addresses):
        after = addresses[here + 1]
        links.append(f'<a rel="next" href="{places[after]}">{after.capitalize()} →</a>')
    return styled(f'<nav class="r-nav" aria-label="Pages">{"".join(links)}</nav>')


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
    body = "".join(f"<div>{cell}</div>" for cell in cells)
    return styled(f'<div class="r-grid" {role}style="--least:{least}">{body}</div>')


def switches(control: Control, on: Sequence[str]) -> mo.ui.dictionary:
    """A switch for each value of a control, by its label."""
    names = (name for name in control.values if name != NONE)
    return mo.ui.dictionary(
        {n: mo.ui.switch(value=n in on, label=control.labels[n]) for n in names}
    )


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
    share({name: on or (NONE,)})
    return on


def plain(text: str) -> mo.Html:
    """Words from outside, shown as they are: as Markdown, a shared URL could bring links along."""
    return mo.Html(f"<span>{html.escape(text)}</span>")


def callout(text: str, kind: str = "warn") -> mo.Html:
    return mo.callout(plain(text), kind=kind)


def share(values: Mapping[str, Any]) -> None:
    """Write the values to the URL, so that the address bar holds the present setting."""
    query = mo.query_params()
    for name, value in values.items():
        text = ",".join(value) if isinstance(value, list | tuple) else str(value)
        if query.get(name) != text:
            query.set(name, text)


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
    seconds = predicted_seconds(missing, device)
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


def run_panel(
    live: LiveRuns, build: Callable, settings: Mapping[str, Any], auto, announce, *beside
) -> tuple[list, Any, Any, Any, mo.Html]:
    """The jobs of the settings; a Run button, or why there is none; while something is running a
    Stop button and a ticker, which makes the cells that name it look again; and all of it as it is
    shown, with what stands `beside`.

    Args:
        build: gives the jobs of the settings, or raises ValueError.
        auto: the switch of `auto_switch`.
        announce: the setter of an `mo.state` counter, which is told when a run begins; it allows
            self loops, as the cell that shows the button is to be run again.
    """
    jobs, problem = attempt(build, settings)
    jobs, device = jobs or [], settings.get("device")

    def start(_) -> None:
        live.start(jobs, device)
        announce(lambda n: n + 1)

    run, why_none = gate(live, jobs, auto=auto.value, device=device, start=start)
    stop, tick = stop_button(live), ticker(live)
    shown = [problem, show_gate(run, why_none, *beside)]
    shown += [] if stop is None else [show_stop(stop, tick)]
    return jobs, run, stop, tick, mo.vstack([part for part in shown if part is not None])


def auto_switch() -> mo.ui.switch:
    """Whether short runs begin by themselves."""
    return mo.ui.switch(value=True, label="run short settings automatically")


def gate(
    live: LiveRuns, jobs: Sequence, *, auto: bool, device: str | None = None, start=lambda _: None
):
    """A Run button with the predicted time, which calls `start`, and a text that says why there is
    none (one of the two is None).

    Where `auto` is on, what takes less than AUTO_RUN_BELOW_S, and anything on CUDA, is started
    at once. In a static page nothing runs, unless it was asked for with parameters: then what has
    `auto` on runs now, to its end.
    """
    if in_static_page():
        if has_own_run() and auto and live.missing(jobs, device):
            _run_for_page(live, jobs, device)
        return None, how_measured(live.rows(jobs, device)) if has_own_run() else ""
    missing = live.missing(jobs, device)
    if not any(job.ids for job in jobs):
        return None, "Nothing is chosen: choose at least one attention."
    if live.running:
        return None, "A run is under way; the next can start when it ends."
    if not missing:
        told = how_measured(live.rows(jobs, device))
        return None, f"These settings have been run; the result is below. {told}".strip()
    if why_not := refusal(missing, device):
        return None, why_not
    seconds, kernel = predicted_seconds(missing, device), kernel_to_compile(missing, device)
    once = f"about {_duration(COMPILE_S)} to compile the {kernel} kernel, once"
    short = seconds < AUTO_RUN_BELOW_S or resolve_device(device).type == "cuda"
    if auto and short and not live.ended_early(jobs):
        live.start(jobs, device)
        return None, f"Running by itself, as it is short{f', after {once}' if kernel else ''}."
    # Of a longer label a phone would show a part.
    told = "its time is not known yet" if math.isnan(seconds) else f"about {_duration(seconds)}"
    label = f"Run ({told}{', compiles first' * bool(kernel)})"
    return mo.ui.button(label=label, kind="success", on_change=start), None


def how_measured(rows: Sequence[Row]) -> str:
    """What a reader of costs measured on a page would not expect: fewer samples than were asked
    for, and fewer threads than there are; empty where there is nothing of the kind."""
    said = []
    timed = [row for row in rows if row["outcome"] == "ok" and ASKED in row["summary"]]
    short = [
        (len(row["summary"]["time_ms_samples"]), row["summary"][ASKED])
        for row in timed
        if getattr(config_of(row), "span", None) != "stream"  # is timed once, token by token
    ]
    if short and min(n for n, _ in short) < max(asked for _, asked in short):
        asked = max(asked for _, asked in short)
        said.append(f"Repeats {asked}, of which the longest had time for {min(short)[0]}.")
    threads = {row["provenance"]["threads"] for row in timed}
    if threads and min(threads) < ALL_THREADS:
        said.append(
            f"Measured on {min(threads)} of {ALL_THREADS} threads: one is left to the page."
        )
    return " ".join(said)


def show_gate(button, text: str | None, *beside) -> mo.Html | None:
    """The button or its text, and what stands beside it; in a static page the text alone."""
    if in_static_page():
        return plain(text) if text else None
    shown = plain(text) if button is None else button
    return mo.hstack([shown, *beside], justify="start", align="center", gap=1.5, wrap=True)


def ticker(live: LiveRuns):
    """What makes the page look again while something is running: several times a second."""
    if not live.running:
        return None
    every_s = REDRAW_TIMINGS_EVERY_S if live.measuring else REDRAW_EVERY_S
    return mo.ui.refresh(default_interval=every_s)


def stop_button(live: LiveRuns):
    """A Stop button, while something is running."""
    if not live.running:
        return None
    return mo.ui.button(label="Stop", kind="danger", on_change=lambda _: live.stop())


def pressed(button) -> bool:
    """Whether a button that may not be there has been pressed."""
    return button is not None and bool(button.value)


def show_stop(stop, tick) -> mo.Html:
    """The Stop button, and the ticker."""
    return mo.hstack([stop, unseen(tick)], justify="start")


def unseen(element) -> mo.Html:
    """An element that works and is not shown, such as a ticker; nothing where it is None."""
    return styled(f'<div class="r-hidden">{"" if element is None else element}</div>')


def watch(live: LiveRuns, announce) -> mo.Html:
    """Look at the run: its progress now; once it has ended, let `announce` (the setter of an
    `mo.state` counter) update what depends on finished runs."""
    progress = live.poll()
    if live.just_ended():
        announce(lambda n: n + 1)
    return show_progress(live, progress)


def show_progress(live: LiveRuns, progress: Progress | None) -> mo.Html:
    """A progress bar with its text; what went wrong, once it has."""
    if progress is None:
        return mo.md("")
    if progress.status == "failed":
        return callout(f"The run failed: {progress.error}", "danger")
    if live.running:
        return styled(
            '<div role="status" class="r-progress"><progress aria-label="progress of the run" '
            f'max="1" value="{progress.fraction:.4f}"></progress> '
            f"{progress.fraction:.0%} &nbsp; {html.escape(progress.text)}</div>"
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
    lines = [said.headline] * (said.says != said.headline) + list(said.lines)
    items = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
    return f"<ul class='r-list'>{items}</ul>"


def criteria_html(said: Verdict) -> str:
    """The same, to be opened."""
    return f"<details><summary>criteria and evidence</summary>{verdict_lines(said)}</details>"


def sizes_text(n_layers: int, n_heads: int, head_dim: int) -> str:
    """Of a model, in words."""
    layers, heads = f"layer{'s' * (n_layers != 1)}", f"head{'s' * (n_heads != 1)}"
    return f"{n_layers} {layers}, {n_heads} {heads} of {head_dim}"


def history(live: LiveRuns) -> mo.Html:
    """The finished runs of this session as a table, the latest first."""
    if not live.finished:
        return mo.md("")
    lines = [_history_line(row) for row in reversed(live.finished)]
    table = markdown_table(["run", "outcome", "result"], lines, LEFT)
    return mo.accordion({f"Runs of this session ({len(lines)})": mo.md(table)})


def _history_line(row: Row) -> list[str]:
    """What a run was of, how it ended, and its result."""
    config, summary = config_of(row), row["summary"]
    result, loss = row["detail"] or "", summary.get("final_loss")
    if (time_ms := summary.get("time_ms")) is not None:
        step = "a step " if hasattr(config, "task") else ""
        result = f"{step}{time_ms:.3g} ms"
    elif (best := summary.get("best_loss")) is not None and "solved" in summary:
        result = f"best loss {best:.4f} in {summary['n_steps']} steps, ended: " + (
            summary["reason"] or row["outcome"]
        )
    elif loss is not None:
        result = f"loss {loss:.4f} nats a token, accuracy {summary['final_accuracy']:.1%}"
    return [words(config, row["seed"]), row["outcome"], as_text(result)]


def words(config: Any, seed: int) -> str:
    """A run, in a line: what is asked of a config is what it has."""
    model, task = getattr(config, "model", config), getattr(config, "task", config)
    said = [" ".join(filter(None, getattr(model, "variant", (getattr(model, "way", None),))))]
    if getattr(model, "update_rule", None) and model.attention != "softmax":
        said.append(model.update_rule)
    if hasattr(model, "span"):
        said.append(model.span)
    said.append(f"S = {task.n_keys}" if hasattr(task, "n_keys") else f"N = {task.seq_len}")
    if hasattr(task, "with_replacement"):
        said.append(f"D = {model.head_dim}")
        said += ["keys come back"] * task.with_replacement
        said += ["evaluated on half the length"] * config.eval_half_length
    else:
        said.append(f"batch {config.batch_size}")
    if hasattr(model, "span"):
        said.append(sizes_text(model.n_layers, model.n_heads, model.head_dim))
    if hasattr(config, "work"):
        said.append(WORK_LABELS[config.work])
    elif hasattr(config, "task"):
        said += [f"{config.n_steps} steps"] * (not hasattr(task, "n_keys")) + [f"seed {seed}"]
    return ", ".join([*said, *getattr(config, "defects", ())])
