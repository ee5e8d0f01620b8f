"""What the fast weights notebook alone shows."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import altair as alt
import marimo as mo

from replib.claims.capacity import charts, filling_charts
from replib.claims.capacity.filling import FillConfig, Filling, fill
from replib.claims.capacity.grid import CAPACITY_MEMORIES, retrieval_config
from replib.claims.capacity.memories import label
from replib.fast_weights import UPDATE_RULES, MemoryConfig, RetrievalConfig
from replib.lab.run import RetrievalJob
from replib.lab.store import Row
from replib.pages import controls, drawn, layout, verdict_cards
from replib.pages.controls import Control
from replib.pages.processor import on_one_core

MEMORIES = {
    label(memory): memory
    for memory in (*CAPACITY_MEMORIES, *(MemoryConfig(attention=x) for x in ("relu", "tanh")))
}
LEAST = "20rem"  # of a chart among others
FILLED = ("linear", "DPFP-1", "DPFP-2", "DPFP-3", "FAVOR+ 64")
# Whether keys are drawn with replacement: settings 1 and 2 of the paper.
RETRIEVAL_SETTINGS = {"every key once": False, "keys come back": True}
MIN_EVALUATIONS = 10  # of a live run; from 1000 steps on they are 100 steps apart, as published


def filling_controls() -> list[Control]:
    """The panel of the memory that is filled without training."""
    return [
        Control("fill_features", "Features", FILLED, "DPFP-1"),
        Control("fill_rule", "Update rule", UPDATE_RULES, "sum"),
        Control("fill_keys", "Keys S", (4, 8, 12, 16, 24, 32, 48), 24),
        Control("fill_dim", "Key size D", (4, 8, 16, 32), 8),
        Control("fill_again", "Keys given a new value", (0, 1, 2, 4, 8), 4),
        Control("fill_strength", "β of delta and fwm", (0.1, 0.25, 0.5, 0.75, 1.0), 1.0),
        Control("fill_seed", "Seed", tuple(range(10)), 0),
    ]


def training_controls() -> list[Control]:
    """The panel of live runs."""
    features = ("softmax", "linear", "DPFP-1")
    return [
        Control("n_keys", "Keys S", (5, 10, 20, 40, 60, 80, 100, 140, 200, 300, 400, 500, 600), 20),
        Control("head_dim", "Head size D", (4, 8, 16, 32, 64, 128), 64),
        Control("n_steps", "Most steps", (50, 100, 300, 1000, 3000, 10_000, 100_000), 100_000),
        Control("seeds", "Seeds", (1, 2, 3, 5), 1),
        Control("update_rule", "Update rule", UPDATE_RULES, "sum"),
        Control("setting", "Keys", tuple(RETRIEVAL_SETTINGS), "every key once"),
        controls.DEVICE,
        Control("attention", "Features", tuple(MEMORIES), features),
    ]


def fill_config(settings: Mapping[str, Any]) -> FillConfig:
    """The filling that the panel asks for."""
    return FillConfig(
        n_keys=settings["fill_keys"],
        memory=replace(MEMORIES[settings["fill_features"]], head_dim=settings["fill_dim"]),
        n_again=min(settings["fill_again"], settings["fill_keys"]),
        strength=settings["fill_strength"],
        seed=settings["fill_seed"],
    )


@lru_cache(maxsize=16)
def _filled(config: FillConfig, rule: str) -> Filling:
    return on_one_core(fill, config, rule)


def memory_view(settings: Mapping[str, Any]) -> alt.LayerChart:
    """The memory that the panel asks for, with sliders for the write and the key."""
    rule = settings["fill_rule"]
    return filling_charts.memory_chart(_filled(fill_config(settings), rule), rule)


def filling_view(settings: Mapping[str, Any]) -> mo.Html:
    """The memory, and what each rule does to the same keys."""
    config = fill_config(settings)
    fillings = {rule: _filled(config, rule) for rule in UPDATE_RULES}
    of_rules = filling_charts.losses_chart(fillings), filling_charts.overwrite_chart(fillings)
    return layout.grid([memory_view(settings), *of_rules], LEAST)


def recorded_charts(
    recorded: Mapping[str, Sequence[Row]], live: Sequence[Row]
) -> dict[str, mo.Html]:
    """The recorded curves of each setting, the published and the live ones among them, and how many
    keys are solved, by title."""
    groups = recorded["capacity"], recorded["update_rules"]
    if not live:
        return drawn.once(_charts)(*groups)
    return {name: mo.as_html(chart) for name, chart in _charts(*groups, live).items()}


def _charts(*groups: Sequence[Row]) -> dict[str, alt.LayerChart]:
    frame = charts.retrieval_frame([row for rows in groups for row in rows])
    shown = {name: charts.loss_chart(frame, n) for n, name in enumerate(RETRIEVAL_SETTINGS, 1)}
    return shown | {"keys solved": charts.solved_chart(frame)}


def live_jobs(values: Mapping[str, Any]) -> list[RetrievalJob]:
    """The runs that the controls ask for; a job a mechanism, its seeds together. Softmax attention
    has no update rule. With the most steps and D = 64 a run is one of those recorded."""
    jobs = []
    for name in values["attention"]:
        rule = "sum" if name == "softmax" else values["update_rule"]
        model = replace(MEMORIES[name], head_dim=values["head_dim"], update_rule=rule)
        config = retrieval_config(
            values["n_keys"],
            model,
            with_replacement=RETRIEVAL_SETTINGS[values["setting"]],
            n_steps=values["n_steps"],
            eval_every=max(
                1, min(RetrievalConfig.eval_every, values["n_steps"] // MIN_EVALUATIONS)
            ),
        )
        jobs.append(RetrievalJob(config=config, seeds=tuple(range(values["seeds"]))))
    return jobs


def training_view(rows: Sequence[Row], recorded: mo.Html) -> mo.Html:
    """The loss of the runs of this session over their steps, beside the recorded chart; in a static
    page that has none of its own the latter alone."""
    if layout.in_static_page() and not layout.has_own_run():
        return recorded
    if not rows:
        return layout.grid([mo.md(f"*{verdict_cards.NOTHING_RUN}*"), recorded], LEAST)
    same = [row for row in rows if row["experiment"] == rows[0]["experiment"]]
    return layout.grid([charts.training_chart(same), recorded], LEAST)
