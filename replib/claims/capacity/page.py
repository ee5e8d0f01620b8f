"""The marimo parts of the fast weights notebook."""

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from time import sleep
from typing import Any

import altair as alt
import marimo as mo
import polars as pl
import torch

from replib.attention.dpfp import DPFPAttention
from replib.attention.performer import PerformerAttention
from replib.claims.capacity import filling, memories, tables
from replib.claims.capacity import filling_charts as charts
from replib.claims.capacity import frames as frames_memory
from replib.claims.capacity.charts import capacity_chart, solved_chart, update_rules_chart
from replib.claims.capacity.filling import FillConfig, Filling
from replib.claims.capacity.grid import NO_EPS, retrieval_config
from replib.fast_weights import FEATURES, UPDATE_RULES, MemoryConfig, RetrievalConfig
from replib.lab.run import RetrievalJob, config_of
from replib.lab.store import Row
from replib.pages import controls, frames
from replib.pages.controls import Control
from replib.pages.live import on_one_core

FEATURE_LABELS = {
    "linear": "linear (elu + 1)",
    "dpfp": "dpfp (DPFP-ν)",
    "performer": "performer (FAVOR+)",
}
TITLES = {"capacity": "Every key once", "update_rules": "Keys come back"}
# The experiments whose rows the page shows.
RECORDED = (*TITLES, memories.MEANS, memories.WITHOUT_EPS)
PERFORMER_SIZES = (64, 128, 512)
PAUSE_S = 0.04  # after each picture of a memory that is filled
MAX_FRAMES = 40  # of them: a browser needs some 0.2 s for each
N_RANKS = 24  # numbers of keys whose rank is computed
MAX_RANKED = 256  # keys; more take longer than a slider may
ROUNDING = 1e-12  # losses below it are 0, in float64
MAX_LENGTH = 1e6  # of W, above which it has diverged
NO_SETTINGS = "*Nothing to show with these settings: see the note above.*"
MAX_HEATMAP_PX, CELL_PX = 420, 9


def training_controls() -> list[Control]:
    """The panel of live runs."""
    return [
        Control("n_keys", "Keys S", (5, 10, 20, 40, 60, 80, 100, 140, 200, 300, 400, 500, 600), 40),
        Control("head_dim", "Head size D", (4, 8, 16, 32, 64, 128), 64),
        Control("nu", "ν of DPFP", (1, 2, 3), 1),
        Control("n_directions", "Directions of FAVOR+", PERFORMER_SIZES, 64),
        Control("n_steps", "Most steps", (50, 100, 300, 1000, 3000, 10_000, 100_000), 100_000),
        Control("seeds", "Seeds", (1, 2, 3, 5), 1),
        Control("update_rule", "Update rule", UPDATE_RULES, "sum"),
        Control("setting", "Keys", tuple(RETRIEVAL_SETTINGS), "every key once"),
        controls.DEVICE,
        Control("attention", "Features", FEATURES, ("softmax", "linear", "dpfp")),
    ]


def filling_controls() -> list[Control]:
    """The panel of the memory that is filled without training."""
    again = (0, 1, 2, 4, 8, 16, 32)
    strengths = (0.1, 0.25, 0.5, 0.75, 1.0)
    return [
        Control("fill_keys", "Keys S", (2, 4, 8, 12, 16, 24, 32, 40, 48, 64), 24),
        Control("fill_dim", "Key size D", (2, 4, 8, 16, 32, 64), 16),
        Control("fill_again", "Keys given a new value", again, 4),
        Control("fill_nu", "ν of DPFP", (1, 2, 3), 1),
        Control("fill_directions", "Directions of FAVOR+", PERFORMER_SIZES, 64),
        Control("fill_strength", "β of delta and fwm", strengths, 1.0),
        Control("fill_features", "Features", filling.MEMORIES, "dpfp", labels=FEATURE_LABELS),
        Control("fill_rule", "Update rule", UPDATE_RULES, "sum"),
        Control("fill_values", "Values", filling.VALUES, "one-hot"),
        Control("fill_scale", "Scale of features (delta, fwm)", filling.SCALES, "length 1"),
        Control("fill_seed", "Seed", tuple(range(10)), 0),
    ]


DEFECTS = {
    "eval_half_length": (
        "evaluate on half the length",
        "Where keys come back, sequences to train on have 2·S writes, the published evaluation S: "
        "an easier task than was trained.",
    ),
    "last_loss": (
        "show the last loss",
        "The published figures show the loss at the end of a run, after ten evaluations without "
        "progress, and not the best, as the paper says.",
    ),
    "published_eps": (
        "published ε of FAVOR+",
        "10⁻⁶ is added to normalisers, and those of FAVOR+ become far smaller as S grows. The "
        "first card tells in its evidence whether FAVOR+ remembers more without.",
    ),
}

SWITCHES = Control(
    "defects",
    "Defects",
    (*DEFECTS, controls.NONE),
    (controls.NONE,),
    labels={name: label for name, (label, _) in DEFECTS.items()},
)


def chosen_defects(elements: mo.ui.dictionary) -> dict[str, Any]:
    """The switches as settings of `live_jobs`, and in the URL."""
    on = controls.switched_on(elements, SWITCHES.name)
    return {
        "eval_half_length": "eval_half_length" in on,
        "report": "last" if "last_loss" in on else "best",
        "published_eps": "published_eps" in on,
    }


def show_defects(elements: mo.ui.dictionary) -> mo.Html:
    """Each switch with what it does."""
    if controls.in_static_page():
        return mo.md("")
    cells = (
        f"{elements[name]}<div class='r-note'>{text}</div>" for name, (_, text) in DEFECTS.items()
    )
    return controls.grid(cells, "17rem", label="defects")


def side_by_side(*charts_shown: alt.LayerChart, least: str = "22rem") -> mo.Html:
    """Charts beside each other where the page is wide enough."""
    return controls.grid((mo.as_html(chart).text for chart in charts_shown), least)


def recorded_tabs(recorded: Mapping[str, Sequence[Row]], published: Mapping[str, Any]) -> mo.Html:
    """The recorded curves of both settings, how long they took and of how many seeds they are, with
    tables, and how many keys those of the first solve."""
    made = {"capacity": tables.capacity_table, "update_rules": tables.update_rules_table}
    tabs = {
        title: mo.vstack(
            [
                recorded_chart(recorded[name], published, name),
                mo.md(f"*Recorded: {tables.recording(recorded[name])}.*"),
                mo.accordion({"As a table": _table(made[name], recorded[name], published)}),
            ]
        )
        for name, title in TITLES.items()
    }
    frame = frames_memory.retrieval_frame(recorded["capacity"], published)
    return mo.ui.tabs(tabs | {"Keys solved": solved_chart(frame)})


def _table(table, rows: Sequence[Row], published: Mapping[str, Any]) -> mo.Html:
    shown = mo.md(table(rows, published)).text
    return controls.styled(f'<div class="r-scroll"><div>{shown}</div></div>')


def recorded_chart(rows: Sequence[Row], published: Mapping[str, Any], name: str) -> alt.LayerChart:
    """Loss against S of recorded, published and live rows of an experiment."""
    frame = frames_memory.retrieval_frame(rows, published)
    return (capacity_chart if name == "capacity" else update_rules_chart)(frame)


def session_charts(
    rows: Sequence[Row],
    recorded: Mapping[str, Sequence[Row]],
    published: Mapping[str, Any],
) -> mo.Html:
    """Loss over the steps of the runs of this session, and where they end among recorded ones."""
    if not rows:
        return mo.md("*Nothing has run yet with these settings.*")
    name = rows[0]["experiment"]
    same = [row for row in rows if row["experiment"] == name]
    config = config_of(same[0])
    rules = {config_of(row).model.update_rule for row in same}
    title = f"S = {config.task.n_keys}, D = {config.model.head_dim}"
    title += f", rule {max(rules, key=UPDATE_RULES.index)}"  # softmax beside others says "sum"
    curves = charts.memory_curves(frames.training_curves(same), title=title)
    return side_by_side(curves, recorded_chart([*recorded[name], *same], published, name))


def fill_config(settings: Mapping[str, Any]) -> FillConfig:
    """The filling that the panel asks for.

    Raises:
        ValueError: there can be none.
    """
    attention, n_keys = settings["fill_features"], settings["fill_keys"]
    sizes = {
        "dpfp": DPFPAttention.Options(nu=settings["fill_nu"]),
        "performer": PerformerAttention.Options(n_directions=settings["fill_directions"]),
    }
    return FillConfig(
        n_keys=n_keys,
        head_dim=settings["fill_dim"],
        attention=attention,
        options=sizes.get(attention),
        n_again=min(settings["fill_again"], n_keys),
        values=settings["fill_values"],
        scale=settings["fill_scale"],
        strength=settings["fill_strength"],
        seed=settings["fill_seed"],
    )


# Computed once for a setting, so that a move of the sliders below it only looks at another write.
@lru_cache(maxsize=12)
def _filled(config: FillConfig, rule: str) -> Filling:
    return filling.fill(filling.draw(config), rule)


@lru_cache(maxsize=4)
def _losses(config: FillConfig) -> pl.DataFrame:
    n_writes = range(1, config.n_writes + 1)
    parts = [
        pl.DataFrame({"rule": rule, "n_writes": n_writes, "loss": _filled(config, rule).losses()})
        for rule in UPDATE_RULES
    ]
    return pl.concat(parts)


@lru_cache(maxsize=4)
def _ranks(config: FillConfig) -> pl.DataFrame:
    """Rank and effective rank of the first n keys, n up to twice R."""
    last = min(MAX_RANKED, max(config.n_keys, 2 * config.n_features))
    stops = sorted({max(1, round(last * i / N_RANKS)) for i in range(N_RANKS + 1)})
    keys, lines = filling.key_features(config, last), []
    for n in stops:
        values = filling.eigenvalues(keys[:n])
        rank, effective = filling.rank(values), filling.effective_rank(values)
        lines.append({"n_keys": n, "rank": float(rank), "effective": effective})
    return pl.DataFrame(lines)


def write_slider(config: FillConfig | None) -> mo.ui.slider:
    """How many of the writes have arrived; all at first."""
    last = config.n_writes if config else 1
    return _slider("Writes that have arrived", 0, last, last)


def key_slider(config: FillConfig | None) -> mo.ui.slider:
    """The key to ask for."""
    return _slider("Key to ask for", 1, config.n_keys if config else 1, 1)


def _slider(label: str, first: int, last: int, value: int) -> mo.ui.slider:
    return mo.ui.slider(first, last, value=value, label=label, show_value=True, full_width=True)


def show_sliders(*elements) -> mo.Html:
    """The sliders and the button that let a reader watch the memory; dead in a static page."""
    if controls.in_static_page():
        return mo.md("")
    return controls.grid(elements, "15rem")


def fill_button() -> mo.ui.run_button:
    """What lets the writes arrive one after the other."""
    return mo.ui.run_button(label="Watch it fill")


def memory_view(
    config: FillConfig | None, rule: str, n_writes: int, key: int, *, slowly: bool = False
) -> mo.Html:
    """W after some writes as a picture, what a key (from 1) reads of it, and the loss along the
    writes; `slowly` shows them on the way, and ends with all writes."""
    if config is None:
        return mo.md(NO_SETTINGS)
    if length := on_one_core(_diverging, config).get(rule):
        return controls.callout(
            f"With the rule {rule} and these features W diverges: its length is {length:z.0e} "
            f"after {config.n_writes} writes. Scale features to length 1, or lower β."
        )
    if slowly:
        n_writes = config.n_writes
        for arrived in range(0, n_writes, math.ceil(n_writes / MAX_FRAMES)):
            mo.output.replace(_memory_charts(config, rule, arrived, key))
            sleep(PAUSE_S)
    return _memory_charts(config, rule, n_writes, key)


@lru_cache(maxsize=4)
def _diverging(config: FillConfig) -> dict[str, float]:
    """The length of W by the rules that make it too large for charts to say anything. A sum is
    read over its normaliser, and may be large."""
    rules = [rule for rule in UPDATE_RULES if rule != "sum"]
    lengths = {rule: _filled(config, rule).memory(config.n_writes).norm().item() for rule in rules}
    return {rule: length for rule, length in lengths.items() if not length < MAX_LENGTH}


def _left_out(config: FillConfig) -> str:
    """Which rules a chart is without, for its subtitle."""
    found = ", ".join(_diverging(config))
    return f"; not shown, as it diverges: {found}" if found else ""


def _memory_charts(config: FillConfig, rule: str, n_writes: int, key: int) -> mo.Html:
    w, *others = on_one_core(_three_charts, config, rule, n_writes, key - 1)
    return mo.vstack([w, side_by_side(*others)])


def _three_charts(config: FillConfig, rule: str, n_writes: int, key: int) -> list[alt.LayerChart]:
    return [
        memory_chart(config, rule, n_writes),
        reads_chart(config, rule, n_writes, key),
        writes_chart(config, rule, n_writes),
    ]


def memory_chart(config: FillConfig, rule: str, n_writes: int) -> alt.LayerChart:
    """W, a row a component of the values; the value of the last write is framed where it is one
    row."""
    filled = _filled(config, rule)
    w = filled.memory(n_writes)
    last = f"{n_writes} of {config.n_writes} writes"
    if n_writes:
        key = int(filled.writes.keys[n_writes - 1]) + 1
        again = " again" if n_writes > config.n_keys else ""
        last += f", the last to key {key}{again}"
    return charts.matrix_chart(
        w.tolist(),
        x="feature",
        y="component of the value",
        title=f"The memory W, rule {rule}: {w.shape[0]} x {w.shape[1]}",
        subtitle=last,
        height=min(MAX_HEATMAP_PX, max(100, CELL_PX * w.shape[0])),
        row=n_writes - 1 if n_writes and config.values == "one-hot" else None,
    )


def reads_chart(config: FillConfig, rule: str, n_writes: int, key: int) -> alt.LayerChart:
    """What a key reads, component by component, beside its value."""
    read, right, last, old = _read(config, rule, n_writes, key)
    n = len(read)
    roles = ["read"] * n
    if config.values == "one-hot":
        roles = ["other values"] * n
        for index, role in ((old, "old value"), (last, "right value")):
            if index >= 0:
                roles[index] = role
    frame = pl.DataFrame(
        {
            "component": range(1, n + 1),
            "read": read.tolist(),
            "right": right.tolist(),
            "role": roles,
        }
    )
    loss = _loss_text((read - right).square().sum().item() / 2)
    what = f"Key {key + 1} is not written yet" if last < 0 else f"What key {key + 1} reads"
    return charts.reads_chart(
        frame,
        x="component of the value",
        title=what,
        subtitle=f"rule {rule}, loss {loss}; lines: what is right" if last >= 0 else "",
    )


def _loss_text(loss: float) -> str:
    """A loss to three digits; 0 where it is rounding."""
    return f"{loss:z.3g}" if loss > ROUNDING else "0"


def _read(
    config: FillConfig, rule: str, n_writes: int, key: int
) -> tuple[torch.Tensor, torch.Tensor, int, int]:
    """What a key reads (M,), its value (M,), and its last write and the one before; -1 for none."""
    filled = _filled(config, rule)
    read = filled.reads[n_writes, key]
    last = int(filled.writes.last_write(n_writes)[key])
    right = filled.writes.values[last] if last >= 0 else torch.zeros_like(read)
    return read, right, last, key if last >= config.n_keys else -1


def writes_chart(config: FillConfig, rule: str, n_writes: int) -> alt.LayerChart:
    """The loss of all keys along the writes, of every rule."""
    frame = _losses(config).filter(~pl.col("rule").is_in(list(_diverging(config))))
    marks = {f"R = {config.n_features}": config.n_features}
    if config.n_again:
        marks["keys come back"] = config.n_keys
    end = frame.filter(pl.col("n_writes") == config.n_writes).sort("loss")
    best = end.row(0, named=True)
    lowest = f"lowest at the end: {best['rule']}, {_loss_text(best['loss'])}"
    return charts.writes_chart(
        frame,
        marks=marks,
        n_writes=n_writes,
        title="All keys written so far",
        subtitle=lowest + _left_out(config),
    )


def overwrite_view(config: FillConfig | None, key: int) -> mo.Html:
    """What a key that was given two values reads by each rule, after all writes."""
    if config is None:
        return mo.md(NO_SETTINGS)
    if key > config.n_again:
        return mo.md(
            f"*Key {key} was given one value. Ask for a key up to {config.n_again}, which was "
            "given a new one.*"
            if config.n_again
            else "*No key is given a new value: move the slider above.*"
        )
    return mo.as_html(on_one_core(overwrite_chart, config, key - 1))


def overwrite_chart(config: FillConfig, key: int) -> alt.LayerChart:
    """How much of its new and of its old value a key reads, by rule."""
    rules = [rule for rule in UPDATE_RULES if rule not in _diverging(config)]
    lines = [line for rule in rules for line in overwritten(config, rule, key)]
    frame = pl.DataFrame(lines)
    return charts.overwrite_chart(
        frame,
        title=f"Key {key + 1} was given a new value",
        subtitle=f"after all writes; others: the length of what is neither{_left_out(config)}",
    )


def overwritten(config: FillConfig, rule: str, key: int) -> list[dict[str, Any]]:
    """What a key reads as parts: its new value, its old value, and the length of the rest."""
    read, new, _, old = _read(config, rule, config.n_writes, key)
    basis = torch.stack([new, _filled(config, rule).writes.values[old]])
    parts = torch.linalg.lstsq(basis.mT, read.unsqueeze(-1)).solution.squeeze(-1)
    rest = (read - parts @ basis).norm()
    names = ("right value", "old value", "other values")
    return [
        {"rule": rule, "part": name, "share": share}
        for name, share in zip(names, [*parts.tolist(), rest.item()], strict=True)
    ]


def crosstalk_view(config: FillConfig | None) -> mo.Html:
    """Cosines between keys, and how many dimensions they fill."""
    if config is None:
        return mo.md(NO_SETTINGS)
    return side_by_side(*on_one_core(_crosstalk_charts, config), least="19rem")


def _crosstalk_charts(config: FillConfig) -> list[alt.LayerChart]:
    features = filling.key_features(config, config.n_keys)
    cosines = filling.similarity(features)
    off = cosines - torch.diag(cosines.diagonal())
    n = config.n_keys
    worst = off.abs().max().item() if n > 1 else 0.0
    mean = off.abs().sum().item() / max(1, n * (n - 1))
    values = filling.eigenvalues(features)
    effective = filling.effective_rank(values)
    return [
        charts.matrix_chart(
            cosines.tolist(),
            x="key",
            y="key",
            title="Crosstalk: cosines between keys",
            subtitle=f"between different keys {mean:z.2g} on average, {worst:z.2g} at most",
            height=charts.SHORT,
        ),
        charts.rank_chart(
            _ranks(config),
            n_features=config.n_features,
            n_keys=n,
            title=f"{n} keys fill {effective:z.1f} dimensions of {config.n_features}",
            subtitle=f"D = {config.head_dim}, dashed line: {n} keys",
        ),
        charts.eigenvalues_chart(
            values.tolist(),
            title=f"Eigenvalues of the cosines of {n} keys",
            subtitle="all at 1 if no key disturbed another",
        ),
    ]


RETRIEVAL_SETTINGS = {"every key once": False, "keys come back": True}
"""Whether keys are drawn with replacement: settings 1 and 2 of the paper."""

MIN_EVALUATIONS = 10  # of a live run; from 1000 steps on they are 100 steps apart, as published


def live_jobs(values: Mapping[str, Any]) -> list[RetrievalJob]:
    """The runs that the fast weights notebook's controls ask for; a job a mechanism, its seeds
    together. Softmax attention has no update rule. With the most steps and all defects off a run is
    as published.

    Raises:
        ValueError: evaluation on half the length where every key comes once.
    """
    jobs = []
    for attention in values["attention"]:
        options = {
            "dpfp": DPFPAttention.Options(nu=values["nu"]),
            "performer": PerformerAttention.Options(n_directions=values["n_directions"]),
        }
        mended = attention == "performer" and not values["published_eps"]
        model = MemoryConfig(
            attention=attention,
            options=options.get(attention),
            update_rule="sum" if attention == "softmax" else values["update_rule"],
            head_dim=values["head_dim"],
            **({"eps": NO_EPS} if mended else {}),
        )
        config = retrieval_config(
            values["n_keys"],
            model,
            with_replacement=RETRIEVAL_SETTINGS[values["setting"]],
            n_steps=values["n_steps"],
            eval_every=max(
                1, min(RetrievalConfig.eval_every, values["n_steps"] // MIN_EVALUATIONS)
            ),
            eval_half_length=values["eval_half_length"],
            report=values["report"],
        )
        jobs.append(RetrievalJob(config=config, seeds=tuple(range(values["seeds"]))))
    return jobs
