"""The marimo parts of the autopsy notebook."""

import functools
import html
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import marimo as mo
import torch

from replib.attention.softmax import softmax_attention
from replib.claims.autopsy import ablation as autopsy
from replib.claims.autopsy import charts, frames, hypotheses, other_works, tables
from replib.claims.autopsy import step_times as timing
from replib.claims.autopsy.defects import DEFECTS, all_defects, article_defects
from replib.claims.autopsy.grid import with_defects
from replib.claims.common import laptop_copy, replication_model, seed_jobs
from replib.claims.crossover.extrapolation import MODEL_NAMES
from replib.lab.run import CostJob, Job, TrainingJob, config_of
from replib.lab.statistics import SOFTMAX_MODELS, Total, measured_total, ratio
from replib.lab.store import Row
from replib.lab.text import markdown_table
from replib.lab.verdict import ratio_text, three_digits
from replib.pages import controls
from replib.pages.controls import Control
from replib.pages.live import in_passing_thread, one_thread_spared
from replib.published import published
from replib.tasks import SequenceCopy

SWITCHES = Control(
    "defects",
    "Defects",
    (*DEFECTS, controls.NONE),
    article_defects("linear"),
    labels={name: one.title for name, one in DEFECTS.items()},
)


def half_an_encoder() -> mo.Html:
    """Half an encoder compared with a model that has only the layers it uses."""
    with one_thread_spared():
        found = in_passing_thread(other_works.half_encoder)
    text = (
        "**Half an encoder beside a model that has only the layers it uses.** On random tokens "
        f"what they encode differs by {found.difference:z.1g} at most; the defect applies a layer "
        f"{found.n_applied} times, the other {found.n_used} times"
    )
    if not controls.in_static_page():  # which is the same each time
        factor = three_digits(found.broken_ms / found.half_ms)
        text += f", and it takes {factor}× as long to encode, here and now"
    return mo.md(f"{text}.")


def presets(choose: Callable) -> mo.ui.array:
    """Buttons that turn all switches on or off."""
    return mo.ui.array(
        [
            mo.ui.button(label=label, on_change=lambda _, names=names: choose(names))
            for label, names in (("all on", tuple(DEFECTS)), ("all off", ()))
        ]
    )


def show_switches(
    elements: mo.ui.dictionary, buttons: mo.ui.array, found: Sequence[hypotheses.Finding]
) -> mo.Html:
    """Each switch with what the defect is, where it stood, what it should do, and which of that
    was measured."""
    cells = (_switch_row(elements, name, hypotheses.measured(found, name)) for name in DEFECTS)
    rows = controls.grid(cells, "21rem", "defects")
    if controls.in_static_page():
        return rows
    return mo.vstack([rows, mo.hstack(list(buttons), justify="start", gap=0.5)])


FOUND_LATER = "<br>Found later, when its effect was known; see the article's own size, above."


def _switch_row(elements: mo.ui.dictionary, name: str, measured: str) -> str:
    one = DEFECTS[name]
    label = f"<b>{html.escape(one.title)}</b>" if controls.in_static_page() else elements[name]
    return (
        f"{label}<div class='r-note'>{html.escape(one.what)}"
        f"{' <i>Linear runs only.</i>' * one.linear_only}<br><code>{html.escape(one.where)}</code>"
        f"{f'<br>Expected: {html.escape(one.expected)}.' if one.expected else FOUND_LATER}"
        f"{f'<br>Measured: {html.escape(measured)}.' if measured else ''}</div>"
    )


def of_experiment(rows: Sequence[Row], name: str) -> list[Row]:
    """The rows of one experiment: "autopsy" has the losses, "autopsy_time" the steps."""
    return [row for row in rows if row["experiment"] == name]


def slowdown_tabs(rows: Sequence[Row], article: Mapping[str, Any]) -> mo.Html:
    """The attribution of the slowdown at each length, the longest first."""
    tabs = {}
    for n in sorted(set(article["N"]) & set(autopsy.lengths_of(rows)), reverse=True) or [64]:
        text = mo.md(tables.attribution_text(timing.attribution(rows, article, n)))
        tabs[f"N = {n}"] = mo.vstack([charts.slowdown_chart(rows, article, n), text])
    return mo.ui.tabs(tabs)


def full_size(rows: Sequence[Row], article: Mapping[str, Any]) -> mo.Html:
    """The curves of the runs of the article's size, where they end, and what that explains."""
    text = mo.md(tables.full_size_table(rows, article))
    return mo.vstack([charts.full_size_chart(rows, article), text], gap=1.5)


def prediction_choices(article: Mapping[str, Any]) -> list[Control]:
    """What the reader chooses of the regression."""
    lengths = tuple(map(str, article["N"]))
    models = SOFTMAX_MODELS, "quadratic", MODEL_NAMES
    return [
        Control("points", "Points", lengths, lengths),
        Control("softmax_model", "Softmax as", *models),
    ]


def prediction(article: Mapping[str, Any], settings: Mapping[str, Any]) -> mo.Html:
    """The crossover that the chosen points and model predict, as a chart with its text."""
    lengths, model = [int(n) for n in settings["points"]], settings["softmax_model"]
    try:
        found = timing.predicted(article, lengths, model)
    except ValueError as error:
        named = f"the model “{MODEL_NAMES[model]}”"
        said = str(error).replace(f"the {model} model", named)
        return mo.callout(said, kind="warn")
    chart = charts.prediction_chart(article, lengths, model)
    return mo.vstack([chart, mo.md(tables.prediction_text(found))])


EACH_ALONE = "each defect alone"
MEASURES = ("both", "losses", "step times", EACH_ALONE)
MODELS = ("small", "the article's")


def live_jobs(values: Mapping[str, Any]) -> list[Job]:
    """The runs that the switches ask for; or the steps with each defect alone and with none, timed
    together, whatever the switches are."""
    if values["measure"] != EACH_ALONE:
        return _switched_jobs(values)
    configs = {
        config: None
        for defects in ((), *((name,) for name in DEFECTS))
        for job in _switched_jobs(values | {"defects": defects, "measure": "step times"})
        for config in job.configs
    }
    return [CostJob(configs=tuple(configs), n_repeats=values["repeats"])] if configs else []


def _switched_jobs(values: Mapping[str, Any]) -> list[TrainingJob | CostJob]:
    """The runs that the switches ask for: mended, and with those of the
    `defects` that the article's runs of the mechanism had; the steps of all are timed together.

    `measure` leaves out the losses ("step times") or the times ("losses").
    """
    n = values["seq_len"]
    configs = []
    for attention in values["attention"]:
        chosen = tuple(one for one in all_defects(attention) if one in values["defects"])
        options = {"task": SequenceCopy(seq_len=n), "batch_size": 8, "lr": 2e-3}
        if values["model"] != MODELS[0]:
            options |= {"model": replication_model(attention), "lr": 1e-3}
        mended = laptop_copy(attention, n, values["n_steps"], **options)
        configs += [with_defects(mended, defects) for defects in dict.fromkeys(((), chosen))]
    jobs: list[TrainingJob | CostJob] = []
    if values["measure"] != "losses" and configs:
        jobs.append(CostJob(configs=tuple(configs), n_repeats=values["repeats"]))
    if values["measure"] != "step times":
        jobs += seed_jobs(configs, values["seeds"])
    return jobs


def _each_alone(times: Sequence[Row]) -> bool:
    """Whether rows are of more than a mechanism's mended and switched steps."""
    sets = {(config_of(r).model.attention, *config_of(r).defects) for r in times}
    return any(sum(one[0] == name for one in sets) > 2 for name, *_ in sets)


def session_charts(rows: Sequence[Row]) -> mo.Html:
    """Losses and step times of this session, mended and with the switches, or each alone."""
    losses, times = of_experiment(rows, "autopsy"), of_experiment(rows, "autopsy_time")
    if not rows:
        return mo.md("*Nothing has run yet with these settings.*")
    if _each_alone(times):
        if frames.effects(times).is_empty():
            return mo.md(
                f"*Steps were repeated fewer than {timing.MIN_SAMPLES} times, too seldom to "
                "compare: this machine was busy. Try another setting when it is not.*"
            )
        return mo.as_html(charts.effects_chart(times))
    shown = [mo.md(comparison(losses, times))]
    if losses:
        shown.insert(0, charts.switches_curves(losses))
    return mo.vstack(shown)


def comparison(losses: Sequence[Row], times: Sequence[Row]) -> str:
    """Runs with the chosen switches against mended ones, as Markdown; what was not measured has no
    column."""
    told = {name: _compared(losses, times, name) for name in ("linear", "softmax")}
    told = {name: cells for name, cells in told.items() if set(cells.values()) != {NONE_YET}}
    columns = [
        column
        for column in next(iter(told.values()), {})
        if any(cells[column] != NONE_YET for cells in told.values())
    ]
    if not columns:
        switched = any(config_of(row).defects for row in times)
        return "" if switched or not times else "*All switches are off: turn one on to compare.*"
    lines = ([name, *(cells[one] for one in columns)] for name, cells in told.items())
    return markdown_table(["", *columns], lines)


NONE_YET = "–"


def _compared(losses: Sequence[Row], times: Sequence[Row], attention: str) -> dict[str, str]:
    """What there is to say of a mechanism, by column."""
    steps = {bool(config_of(row).defects): row for row in times if _of(row, attention)}
    totals = {on: _total(row) for on, row in steps.items() if row["outcome"] == "ok"}
    factor = NONE_YET
    if len(totals) == 2:
        factor = ratio_text(ratio(totals[True], totals[False]))
    runs = [row for row in losses if _of(row, attention)]
    return {
        "time of a step, with switches over mended": factor,
        "final loss, mended": _ends(runs, switched=False),
        "with switches": _ends(runs, switched=True),
    }


def _of(row: Row, attention: str) -> bool:
    return config_of(row).model.attention == attention


def _total(row: Row) -> Total:
    return measured_total(row["summary"]["time_ms_samples"])


def _ends(rows: Sequence[Row], *, switched: bool) -> str:
    """Final losses and accuracies of finished runs, with switches or mended."""
    told = [
        f"{row['summary']['final_loss']:z.4f} ({row['summary']['final_accuracy']:z.0%})"
        for row in rows
        if row["outcome"] == "ok" and bool(config_of(row).defects) == switched
    ]
    return ", ".join(told) or NONE_YET


@dataclass(frozen=True)
class Shown:
    """A defect of another work: what it is, and a function that says what it does, mended and
    broken. What is timed is not the same each time, so a static page leaves it out."""

    title: str
    what: str
    measure: Callable[[], tuple[str, str]]
    timed: bool = False


def other_switches() -> mo.ui.dictionary:
    """A switch for each defect of the other works."""
    return mo.ui.dictionary(
        {name: mo.ui.switch(value=True, label=one.title) for name, one in OTHERS.items()}
    )


def show_others(elements: mo.ui.dictionary) -> mo.Html:
    """Each defect of the other works with what was measured just now; what the switch has chosen
    is bold."""
    rows = (_other_row(elements, name, one) for name, one in OTHERS.items())
    return controls.grid(rows, "100%", "other defects")


def _other_row(elements: mo.ui.dictionary, name: str, one: Shown) -> str:
    label = elements[name]
    try:
        if one.timed and controls.in_static_page():
            raise ValueError("Timed where the notebook runs: open it to see.")
        told = in_passing_thread(_measured, name)
    except (ImportError, ValueError) as error:
        label, body = f"<b>{one.title}</b>", f"<i>{html.escape(str(error))}</i>"
    else:
        on = elements[name].value
        parts = zip(("mended", "broken"), told, (not on, on), strict=True)
        body = "<br>".join(
            f"{'<b>' * bold}{state}: {html.escape(text)}{'</b>' * bold}"
            for state, text, bold in parts
        )
    if controls.in_static_page():
        label = f"<b>{one.title}</b>"
    return (  # side by side, and below each other on a narrow page
        f'<div class="r-beside"><div>{label}</div>'
        f"<div>{html.escape(one.what)}<br>{body}</div></div>"
    )


@functools.cache
def _measured(name: str) -> tuple[str, str]:
    """What was measured, once a process: the runs are the same each time."""
    with one_thread_spared():
        return OTHERS[name].measure()


def _bleu() -> tuple[str, str]:
    translations, references = other_works.small_corpus(other_works.N_PAIRS)
    scores = other_works.bleu_scores(translations, references)
    ruined = other_works.ruined_but_first(translations)
    of_ruined = other_works.bleu_scores(ruined, references)
    # The same pairs in another order: the second comes first.
    turned = other_works.bleu_scores(*(x[1:] + x[:1] for x in (translations, references)))
    return tuple(
        f"BLEU {score.bleu:z.1f}, of {score.n_words} words; {bad.bleu:z.1f} when all translations "
        f"but the first are ruined; {other.bleu:z.1f} when another pair comes first"
        for score, bad, other in zip(*map(_both, (scores, of_ruined, turned)), strict=True)
    )


def _both(scores: other_works.Scores) -> tuple[other_works.Score, other_works.Score]:
    return scores.right, scores.wrong


def _bleu_published() -> str:
    """What the work published and what the right call gives on its translations."""
    table = published()["linformer_project"]["table"].values()
    wrong, right = ([one[name] for one in table] for name in ("bleu_published", "bleu_recomputed"))
    return (
        f"It published {min(wrong):z.1f} to {max(wrong):z.1f}; the right call gives "
        f"{min(right):z.1f} to {max(right):z.1f} on its translations"
    )


def _positions() -> tuple[str, str]:
    losses = other_works.position_losses()
    what = f"after {other_works.N_STEPS} steps on sequences that repeat themselves"
    return tuple(f"{loss:z.4f} nats a token {what}" for loss in (losses.mended, losses.broken))


def _linformer() -> tuple[str, str]:
    generator = torch.Generator().manual_seed(0)
    naive = other_works.NaiveCausalLinformer(16, 8, generator)
    leaks = [other_works.future_leak(one, seq_len=16) for one in (softmax_attention, naive)]
    losses = other_works.prediction_losses()
    return tuple(
        f"outputs move by {leak:z.0%} when all later tokens change; {loss:z.3f} nats a token on "
        f"random symbols, of which nobody can predict more than ln 10 = {losses.floor:z.3f}"
        for leak, loss in zip(leaks, (losses.mended, losses.broken), strict=True)
    )


def _timing() -> tuple[str, str]:
    found = other_works.timings("cuda" if torch.cuda.is_available() else "cpu")
    return tuple(
        f"{ms:z.3g} ms for a product of matrices of 4096"
        for ms in (found.synchronised, found.unsynchronised)
    )


OTHERS = {
    "bleu": Shown(
        "BLEU of the first sentence",
        "A Linformer for translation (crybot/linformer) calls corpus_bleu(cands, [[s] for s in "
        "refs]). sacrebleu takes each inner list for a set of references of the whole corpus, and "
        "each ends after one sentence: the first translation alone is scored, against all "
        f"{other_works.N_PAIRS} references. {_bleu_published()}. Here is the same call on as "
        "many generated pairs.",
        _bleu,
    ),
    "positions": Shown(
        "positions of the batch",
        "The positional encoding is indexed by the place in the batch, so that all tokens of a "
        "sequence get the same one: a language model of one layer cannot see order. It is scored "
        f"on batches of {other_works.BATCH}, as it was trained.",
        _positions,
    ),
    "linformer": Shown(
        "a Linformer made causal",
        "Linformer mixes keys and values along the sequence; a mask over the mixtures comes too "
        "late, each holds the future already. Mended is softmax attention.",
        _linformer,
    ),
    "timing": Shown(
        "a clock that does not wait",
        "A call to a GPU returns before its work is done; a time that is taken then is that of "
        "asking.",
        _timing,
        timed=True,
    ),
}
