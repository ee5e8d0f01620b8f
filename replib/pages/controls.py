"""The parameters of a page: controls that are set from its address, and write it."""

import html
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import marimo as mo
import torch

from replib.lab.timing import WORKS
from replib.pages import layout

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
    if layout.in_static_page():
        check_asked(everywhere, layout.asked_parameters(), notes)
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
    if layout.in_static_page():
        return mo.callout(mo.Html(_static_text(values)))
    cells = "".join(map(_cell, elements.elements.values()))
    shown = layout.styled(f'<div class="r-panel">{cells}</div>')
    return mo.vstack([shown, layout.callout("; ".join(notes))]) if notes else shown


def _static_text(values: Mapping[str, Any]) -> str:
    text = "A static copy: the controls work in the notebook, <code>make run</code>."
    if not layout.has_own_run():
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
    if layout.in_static_page():
        check_asked([control], (), notes)
    return tuple(name for name in values[control.name] if name != NONE)


def switched_on(elements: mo.ui.dictionary, name: str) -> tuple[str, ...]:
    """The switches that are on, which are also written to the URL, as the parameter `name`."""
    on = tuple(switch for switch, value in elements.value.items() if value)
    share({name: on or (NONE,)}, elements.unsaid)
    return on


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


def attempt(build: Callable, settings: Mapping[str, Any]) -> tuple[Any, mo.Html | None]:
    """What is built of the settings; none, and what is wrong with them, where it cannot be."""
    try:
        return build(settings), None
    except ValueError as error:
        return None, layout.callout(str(error))
