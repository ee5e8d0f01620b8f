"""What the autopsy's page alone shows: switches and their runs, code, and what is folded."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import marimo as mo
import torch

from replib.claims.autopsy import charts, other_works, tables
from replib.claims.autopsy.ablation import MENDED
from replib.claims.autopsy.broken_parts import ReusedBlock, SplitHeads
from replib.claims.autopsy.defects import DEFECTS, AutopsyConfig, all_defects, followed
from replib.claims.autopsy.grid import with_defects
from replib.claims.autopsy.prediction import prediction_chart
from replib.claims.common import laptop_copy, replication_model, seed_jobs
from replib.claims.crossover.extrapolation import MODEL_NAMES
from replib.lab.run import CostJob, Job, TrainingJob, config_of
from replib.lab.statistics import SOFTMAX_MODELS, measured_total, ratio
from replib.lab.store import Row
from replib.lab.text import LEFT, markdown_table
from replib.lab.verdict import ratio_text
from replib.models import MultiHeadAttention
from replib.pages import code, controls, layout, verdict_cards
from replib.pages.controls import Control
from replib.pages.live import LiveRuns
from replib.pages.processor import in_passing_thread
from replib.published import published
from replib.tasks import SequenceCopy

SWITCHES = Control(
    "defects",
    "Defects",
    (*DEFECTS, controls.NONE),
    ("split_heads", "adam"),  # which keep it from learning
    labels={name: one.title for name, one in DEFECTS.items()},
)
MODELS = ("small", "the article's")
PARAMETERS = [
    Control("seq_len", "Sequence length N", (8, 16, 32, 64, 128, 256), 8),
    Control("n_steps", "Steps of a run", (50, 100, 200, 400, 1000, 3000), 400),
    Control("model", "Model", MODELS, MODELS[0]),
    Control("attention", "Attention", ("softmax", "linear"), ("linear",)),
]
REPEATS = 9  # of a timed step
NONE_YET = "–"


# --- the switches and their runs ------------------------------------------------------------------


def presets(choose: Callable) -> mo.ui.array:
    """Buttons that turn all switches on or off."""
    return mo.ui.array(
        [
            mo.ui.button(label=label, on_change=lambda _, names=names: choose(names))
            for label, names in (("all on", tuple(DEFECTS)), ("all off", ()))
        ]
    )


def show_switches(elements: mo.ui.dictionary) -> mo.Html:
    """The switches; their names in a static page."""
    if layout.in_static_page():
        return layout.plain(", ".join(one.title for one in DEFECTS.values()))
    return layout.grid((elements[name] for name in DEFECTS), "14rem", "defects")


def live_jobs(values: Mapping[str, Any]) -> list[Job]:
    """The runs that the switches ask for: mended, and with those of the `defects` that the
    article's runs of the mechanism had; then the steps of all, timed together."""
    n, configs = values["seq_len"], []
    for attention in reversed(values["attention"]):
        options = {"task": SequenceCopy(seq_len=n), "batch_size": 8, "lr": 2e-3}
        if values["model"] != MODELS[0]:
            options |= {"model": replication_model(attention), "lr": 1e-3}
        mended = laptop_copy(attention, n, values["n_steps"], **options)
        chosen = tuple(one for one in all_defects(attention) if one in values["defects"])
        configs += [with_defects(mended, defects) for defects in dict.fromkeys(((), chosen))]
    timed = [CostJob(configs=tuple(configs), n_repeats=REPEATS)] if configs else []
    return [*seed_jobs(configs, 1), *timed]


def session(live: LiveRuns, rows: Sequence[Row], defects: Sequence[str]) -> mo.Html:
    """Losses and step times of this session, mended and with the switches."""
    losses = [row for row in rows if row["experiment"] == "autopsy"]
    if not losses:
        return mo.md(f"*{verdict_cards.NOTHING_RUN}*")
    shown = [charts.switches_curves(losses)]
    if not live.running:
        shown.append(mo.md(comparison(rows, lambda row: _follows(live, row))))
    if not defects:
        shown.append(mo.md("*All switches are off: turn one on to compare.*"))
    return mo.vstack(shown)


def comparison(rows: Sequence[Row], follows: Callable[[Row], str]) -> str:
    """A line a set of defects: where its runs end, what they follow, and how much longer a step
    takes than a mended one of its mechanism, as Markdown."""
    sets: dict[AutopsyConfig, list[Row]] = {}
    for row in rows:
        if row["outcome"] == "ok":
            sets.setdefault(config_of(row), []).append(row)
    lines = []
    for config, some in sets.items():
        times = [_samples(sets, other) for other in (config, with_defects(config, ()))]
        ends = [row for row in some if row["experiment"] == "autopsy"]
        name = f"{config.model.attention}, {'with switches' if config.defects else MENDED}"
        factor = ""
        if config.defects and all(times):
            factor = ratio_text(ratio(*(measured_total(one) for one in times)))
        loss = ", ".join(f"{row['summary']['final_loss']:z.3f}" for row in ends)
        right = ", ".join(f"{row['summary']['final_accuracy']:z.0%}" for row in ends)
        followed_by = follows(ends[-1]) if ends else ""
        lines.append([cell or NONE_YET for cell in (name, loss, right, followed_by, factor)])
    head = ["runs", "final loss", "right", "follows the source / its own input", "a step takes"]
    return markdown_table(head, lines)


def _samples(sets: Mapping[AutopsyConfig, Sequence[Row]], config: AutopsyConfig) -> tuple:
    found = (row["summary"].get("time_ms_samples") for row in sets.get(config, ()))
    return next((tuple(one) for one in found if one), ())


def _follows(live: LiveRuns, row: Row) -> str:
    """What a run of this page copies, where its own input is another sequence than the source."""
    config = config_of(row)
    training = live.model(TrainingJob(config=config, seed=row["seed"]), row["provenance"]["device"])
    if training is None:
        return ""
    generator = torch.Generator().manual_seed(0)
    shares = in_passing_thread(followed, training.model, config.task, generator)
    return " / ".join(f"{share:z.0%}" for share in shares)


# --- what is recorded -----------------------------------------------------------------------------


def recorded_tabs(
    recorded, article: Mapping[str, Any], prediction: mo.Html, shown: dict[str, str]
) -> mo.Html:
    """The recorded ablation: losses, times, the slowdown taken apart, and the article's size; and
    the article's prediction. `shown` keeps which is open when the prediction moves."""
    rows = recorded.rows

    def tabs(name: str, show: Callable[[Sequence[Row]], Any]) -> mo.Html:
        return layout.device_tabs(rows[name], show)

    def losses() -> mo.Html:
        return tabs("autopsy", lambda runs: charts.losses_chart(runs, article))

    def slowdown(times: Sequence[Row]) -> mo.Html:
        return charts.slowdown_chart(times, article, max(article["N"]))

    def full_size() -> mo.Html:
        chart = tabs("autopsy_full", lambda runs: charts.full_size_chart(runs, article))
        return mo.vstack([recorded.cards(None, "softmax_returns"), chart])

    return mo.ui.tabs(
        {
            "Losses": layout.later(losses) if shown else losses(),
            "Time of a step": layout.later(lambda: tabs("autopsy_time", charts.effects_chart)),
            "The slowdown, taken apart": layout.later(lambda: tabs("autopsy_time", slowdown)),
            "Where 3149 comes from": prediction,
            "At the article's own size": layout.later(full_size),
        },
        value=shown.get("tab"),
        on_change=lambda tab: shown.update(tab=tab),
    )


def lines_of_defects() -> mo.Html:
    """Three defects as the library re-enacts them, one beside what it replaces."""
    heads = [
        mo.vstack([mo.md(f"**{name}**"), code.source(function, equation)])
        for name, function, equation in (
            ("As it should be: H heads of D", MultiHeadAttention._heads, WHOLE),
            ("The defect: each is split again, into P", SplitHeads._heads, SPLIT),
        )
    ]
    return mo.ui.tabs(
        {
            "Heads split twice": layout.grid(heads, "26rem"),
            "Adam at 1e-4": code.source(AutopsyConfig.trained.fget),
            "Half an encoder": code.source(ReusedBlock.forward),
        }
    )


WHOLE = r"S^h = \sum_j \phi(k^h_j)\, {v^h_j}^\top \in \mathbb{R}^{D \times M}"
SPLIT = r"S^{h,p} = \sum_j \phi(k^{h,p}_j)\, {v^{h,p}_j}^\top \in"
SPLIT += r" \mathbb{R}^{D/P \times M/P},\; p = 1 \dots P"


def folded(recorded, article: Mapping[str, Any]) -> mo.Html:
    """What a reader may want to look up."""
    losses, times = recorded.rows["autopsy"], recorded.rows["autopsy_time"]
    texts = {
        "Every defect: where it stands, what was expected of it, what it did": (
            lambda: tables.defects_table(losses, times)
        ),
        "Which defects keep it from learning": lambda: tables.failure_table(losses),
        "The article's losses in nats a token": lambda: tables.losses_table(article, losses),
        "Defects of other public works": others_table,
    }
    return mo.accordion(
        {name: layout.later(lambda t=text: mo.md(t())) for name, text in texts.items()}
    )


# --- where 3149 comes from ------------------------------------------------------------------------


def prediction_choices(article: Mapping[str, Any]) -> list[Control]:
    """What the reader chooses of the regression."""
    lengths = tuple(map(str, article["N"]))
    models = SOFTMAX_MODELS, "quadratic", MODEL_NAMES
    return [
        Control("points", "Points", lengths, lengths),
        Control("softmax_model", "Softmax as", *models),
    ]


def prediction(article: Mapping[str, Any], settings: Mapping[str, Any]) -> mo.Html:
    """The crossover that the chosen points and model predict, or why there is none."""
    lengths, model = [int(n) for n in settings["points"]], settings["softmax_model"]
    try:
        return mo.as_html(prediction_chart(article, lengths, model))
    except ValueError as error:
        named = f"the model “{MODEL_NAMES[model]}”"
        return mo.callout(str(error).replace(f"the {model} model", named), kind="warn")


def others_table() -> str:
    """Defects of other public works, each with what it does, measured now, as Markdown."""
    table = published()["linformer_project"]["table"].values()
    wrong, right = ([one[name] for one in table] for name in ("bleu_published", "bleu_recomputed"))
    what = {
        "bleu": "A Linformer for translation (crybot/linformer) calls corpus_bleu(cands, [[s] for "
        "s in refs]): only the first translation is scored, against all "
        f"{other_works.N_PAIRS} references. It published {min(wrong):z.1f} to {max(wrong):z.1f}; "
        f"the right call gives {min(right):z.1f} to {max(right):z.1f} on its translations.",
        "positions": "Positions are indexed by the place in the batch, so that all tokens of a "
        "sequence get the same one: a language model of one layer cannot see order.",
        "linformer": "A Linformer made causal by a mask: it mixes keys and values along the "
        "sequence first, so that each mixture holds the future already. Mended is softmax.",
    }
    try:
        measured = in_passing_thread(other_works.shown)
    except ImportError as error:
        return str(error)
    return markdown_table(
        ["defect", "mended", "broken"], [[what[name], *measured[name]] for name in what], LEFT
    )
