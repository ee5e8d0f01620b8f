"""Static output of the recorded data: figures, pages, and the verdict table of the README."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import altair as alt
import vl_convert

from replib import charts, claims, controls, frames, store
from replib.experiments import recorded_rows
from replib.published import published
from replib.statistics import SOFTMAX_MODELS, article_regression
from replib.verdicts import Verdict

NOTEBOOKS = store.ROOT / "notebooks"
FIGURES = store.ROOT / "figures"
README = store.ROOT / "README.md"
TABLE_BEGIN, TABLE_END = "<!-- verdicts: begin -->", "<!-- verdicts: end -->"
PNG_SCALE = 2.0  # pixels a unit, sharp on screens of today


def figures() -> dict[str, alt.LayerChart]:
    """Every figure of the recorded data, by its file name."""
    rows = {
        name: recorded_rows(name)
        for name in ("convergence", "sequence_copy", "scaling", "crossover", "step_time")
    }
    article = published()["dm2022"]
    drawn = {}
    curves = frames.training_curves(rows["convergence"])
    for seq_len in sorted(curves["seq_len"].unique()):
        drawn[f"convergence_{seq_len}"] = charts.learning_curves(
            curves.filter(curves["seq_len"] == seq_len), title=f"Learning to copy, N = {seq_len}"
        )
    drawn["convergence_seeds"] = charts.seeds_chart(
        frames.training_summaries(rows["convergence"]), title="Where each seed ended"
    )
    drawn["sequence_copy"] = charts.seeds_chart(
        frames.training_summaries(rows["sequence_copy"]),
        title="The 2022 replication's task: where each seed ended",
    )
    both = claims.of_work(frames.costs(rows["scaling"]), "forward_backward")
    drawn["scaling_time"] = charts.cost_chart(both, title="Time of attention, per sequence")
    drawn["scaling_memory"] = charts.cost_chart(
        both, y="memory_bytes_per_sample", title="Memory of attention, per sequence"
    )
    for batch_size in (8, 1):
        drawn[f"crossover_batch_{batch_size}"] = controls.crossover_chart(
            rows["crossover"], "forward_backward", batch_size
        )
    fits = [
        article_regression(
            article["N"], article["softmax_s"], article["linear_s"], softmax_model=model
        )
        for model in SOFTMAX_MODELS
    ]
    drawn["extrapolation_2022"] = charts.extrapolation_chart(
        article, fits, title="Four points up to N = 64, extended to 8192"
    )
    drawn["table_1"] = charts.replication_chart(
        frames.costs(rows["step_time"]), article, title="3000 training steps of the 2022 model"
    )
    return drawn


def write_report(notebooks: Sequence[str] = ()) -> list[Path]:
    """Write the figures, the README's table and a page a notebook; returns what was written.

    Args:
        notebooks: only these pages (then no figures), such as "03_speed_crossover".

    Raises:
        ValueError: there is no such notebook, or it failed to run.
    """
    known = {path.stem: path for path in sorted(NOTEBOOKS.glob("[0-9]*.py"))}
    for name in notebooks:
        if name not in known:
            raise ValueError(f"no notebook {name!r}: use {', '.join(known)}")
    written = [] if notebooks else [*write_figures(), write_readme_table()]
    for name in notebooks or known:
        written.append(_write_page(known[name]))
    return written


def write_figures(folder: Path = FIGURES) -> list[Path]:
    """Write every figure as SVG and PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, chart in figures().items():
        specification = charts.printable(chart).to_json()
        svg, png = folder / f"{name}.svg", folder / f"{name}.png"
        svg.write_text(vl_convert.vegalite_to_svg(specification))
        png.write_bytes(vl_convert.vegalite_to_png(specification, scale=PNG_SCALE))
        written += [svg, png]
    return written


def readme_table() -> str:
    """The claims with what the paper, the article and the rows recorded here say, as Markdown."""
    article = published()["dm2022"]
    lines = ["| claim | paper | 2022 replication | here |", "|---|---|---|---|"]
    for name, title, said, judge in (
        ("convergence", "1 convergence", claims.article_convergence, claims.convergence),
        ("scaling", "2 linear scaling", claims.article_scaling, claims.scaling),
        ("crossover", "3 crossover", claims.article_crossover, claims.speed_crossover),
        ("generation", "4 generation", claims.article_generation, claims.generation),
    ):
        rows = recorded_rows(name)
        lines.append(
            f"| {title} | {claims.PAPER_SAYS[name]} | {said(article)} | "
            f"{_readme_verdict(judge(rows), controls.device_names(rows))} |"
        )
    steps = recorded_rows("step_time")
    lines.append(f"| 3000 training steps | – | {' | '.join(claims.step_ratios(article, steps))} |")
    return "\n".join(lines)


def _readme_verdict(verdict: Verdict, devices: str) -> str:
    details = [f"{one.text}: {one.figure}" for one in verdict.criteria] + list(verdict.evidence)
    return (
        f"**{verdict.status}** on {devices}: {verdict.headline}"
        f"<details><summary>criteria and evidence</summary>{'<br>'.join(details)}</details>"
    )


def write_readme_table(readme: Path = README) -> Path:
    """Bring the table between the README's two marks up to date with the recorded rows.

    Raises:
        ValueError: the README has no such marks.
    """
    text = readme.read_text()
    before, begin, rest = text.partition(TABLE_BEGIN)
    _, end, after = rest.partition(TABLE_END)
    if not begin or not end:
        raise ValueError(f"{readme.name} lacks {TABLE_BEGIN} or {TABLE_END}: put both back")
    readme.write_text(f"{before}{begin}\n{readme_table()}\n{end}{after}")
    return readme


def _write_page(notebook: Path) -> Path:
    page = FIGURES / "report" / f"{notebook.stem}.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "marimo", "-q", "-y", "-l", "ERROR", "export", "html"]
    command += [str(notebook), "--no-include-code", "--force", "-o", str(page)]
    done = subprocess.run([*command, "--", "--static"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"{notebook.name} did not run to its end:\n{done.stderr.strip()}")
    return page
