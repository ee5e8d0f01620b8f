"""Static output of the recorded data: figures, pages, and the verdict table of the README.

Everything here is the same, byte for byte, for the same commit and the same rows; only a page that
was asked for with parameters holds a run of its own.
"""

import hashlib
import html
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import altair as alt
import vl_convert

from benchmarks import run
from replib import files
from replib.claims import charts, judging
from replib.claims.autopsy import judge as claims_autopsy
from replib.claims.autopsy import page as autopsy_parts
from replib.claims.autopsy import step_times
from replib.claims.capacity import frames as frames_memory
from replib.claims.capacity import judge as claims_memory
from replib.claims.generation import judge as claims_generation
from replib.claims.generation import page as generation_parts
from replib.claims.images import page as drawing_parts
from replib.claims.scaling import judge as claims_scaling
from replib.claims.scaling import page as cost_parts
from replib.lab.recorded import recorded_rows
from replib.lab.statistics import SOFTMAX_MODELS, article_regression
from replib.lab.store import Row
from replib.lab.text import LEFT, markdown_table
from replib.lab.verdict import Verdict
from replib.pages import controls, frames
from replib.published import published
from replib.report import offline
from replib.report.index import index_page

NOTEBOOKS = files.ROOT / "notebooks"
PICTURES = NOTEBOOKS / "__marimo__" / "assets"  # where marimo's gallery looks for a card's picture
FIGURES = files.ROOT / "figures"
README = files.ROOT / "README.md"
PNG_SCALE = 2.0  # pixels a unit, sharp on screens of today
PICTURE_SHAPE = 1.91  # width to height of a card's picture; what is beyond is cut off
PICTURE_TONE = "#F4F2EC"  # neither glares on the dark page nor vanishes on the light one
PICTURE_FONT = 17  # pixels, of pictures that are shown about half as large
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
PRINT_WITHIN_S = 120
HASH_DIGITS = 12


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A chart, and the rows that it was drawn from. `published` is whether it also shows, or only
    shows, published figures."""

    chart: alt.LayerChart
    experiment: str | None = None
    rows: Sequence[Row] = ()
    published: bool = False

    @property
    def sources(self) -> list[str]:
        said = []
        if self.experiment:
            path = files.data_folder() / f"{self.experiment}.jsonl"
            said.append(f"{_short(path)}, {_count(self.rows)}, {_hash(json.dumps(self.rows))}")
        return said + ["data/published.json"] * self.published


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A line of the verdict table, with its figures; the one named `shown` stands for it in the
    index and in the gallery of notebooks. `paper_on` is what the paper is quoted on, where it is
    not what the experiment is named after."""

    title: str
    notebook: str
    experiment: str
    article: Callable[[Mapping], str]
    judge: Callable[[Sequence[Row]], Verdict]
    figures: Callable[[], Iterator[tuple[str, Figure]]]
    shown: str
    paper_on: str = ""

    @property
    def paper(self) -> str:
        if self.experiment == "images":  # composed of published figures
            return judging.paper_images(published()["katharopoulos2020"])
        said = judging.PAPER_SAYS | claims_memory.PAPER_SAYS
        return said[self.paper_on or self.experiment]


def _convergence_figures() -> Iterator[tuple[str, Figure]]:
    rows = recorded_rows("convergence")
    curves = frames.training_curves(rows)
    for seq_len in sorted(curves["seq_len"].unique()):
        yield (
            f"convergence_{seq_len}",
            Figure(
                chart=charts.learning_curves(
                    curves.filter(curves["seq_len"] == seq_len),
                    title=f"Learning to copy, N = {seq_len}",
                ),
                experiment="convergence",
                rows=[row for row in rows if row["config"]["task"]["seq_len"] == seq_len],
            ),
        )
    for name, experiment, title in (
        ("convergence_seeds", "convergence", "Where each seed ended"),
        ("sequence_copy", "sequence_copy", "The 2022 replication's task: where each seed ended"),
    ):
        rows = recorded_rows(experiment)
        chart = charts.seeds_chart(frames.training_summaries(rows), title=title)
        yield name, Figure(chart=chart, experiment=experiment, rows=rows)


def _scaling_figures() -> Iterator[tuple[str, Figure]]:
    rows = [row for row in recorded_rows("scaling") if row["config"]["work"] == BOTH]
    rows = claims_scaling.judged_rows(rows)
    costs = frames.pooled(frames.costs(rows))
    for name, y, title in (
        ("scaling_time", "time_ms_per_sample", "Time of attention, per sequence"),
        ("scaling_memory", "memory_bytes_per_sample", "Memory of attention, per sequence"),
    ):
        yield (
            name,
            Figure(
                chart=charts.cost_chart(costs, y=y, title=title), experiment="scaling", rows=rows
            ),
        )


def _crossover_figures() -> Iterator[tuple[str, Figure]]:
    rows = [row for row in recorded_rows("crossover") if row["config"]["work"] == BOTH]
    for batch_size in (8, 1):
        used = [row for row in rows if row["config"]["batch_size"] == batch_size]
        chart = cost_parts.crossover_chart(used, BOTH, batch_size)
        yield (
            f"crossover_batch_{batch_size}",
            Figure(chart=chart, experiment="crossover", rows=used),
        )
    yield (
        "crossings",
        Figure(chart=cost_parts.crossings_chart(rows, BOTH), experiment="crossover", rows=rows),
    )
    article = published()["dm2022"]
    fits = [
        article_regression(
            article["N"], article["softmax_s"], article["linear_s"], softmax_model=model
        )
        for model in SOFTMAX_MODELS
    ]
    title = "Four points up to N = 64, extended to 8192"
    chart = charts.extrapolation_chart(article, fits, title=title)
    yield "extrapolation_2022", Figure(chart=chart, published=True)
    steps = frames.steps_alike(recorded_rows("step_time"))
    chart = charts.replication_chart(
        frames.costs(steps), article, title="3000 training steps of the 2022 model"
    )
    yield "table_1", Figure(chart=chart, experiment="step_time", rows=steps, published=True)


def _generation_figures() -> Iterator[tuple[str, Figure]]:
    rows = recorded_rows("generation")
    sizes = generation_parts.rows_by_size(rows)
    if not sizes:
        return
    shown = max(sizes, key=lambda name: len(sizes[name]))  # the size that most points are of
    for name, chart, used in (
        ("generation_tokens", generation_parts.token_chart(sizes[shown], name=shown), sizes[shown]),
        (
            "generation_memory",
            generation_parts.token_chart(sizes[shown], "state_bytes", shown),
            sizes[shown],
        ),
        ("generation_streams", generation_parts.stream_chart(rows), rows),
    ):
        yield name, Figure(chart=chart, experiment="generation", rows=used)
    chart = generation_parts.speedup_chart(rows, published()["katharopoulos2020"])
    yield (
        "generation_speedups",
        Figure(chart=chart, experiment="generation", rows=rows, published=True),
    )


def _images_figures() -> Iterator[tuple[str, Figure]]:
    rows = recorded_rows("images")
    if rows:
        chart = drawing_parts.bits_chart(rows)
        yield "images_bits", Figure(chart=chart, experiment="images", rows=rows)


def _autopsy_losses() -> Iterator[tuple[str, Figure]]:
    rows, article = recorded_rows("autopsy"), published()["dm2022"]
    drawn = {"experiment": "autopsy", "rows": rows, "published": True}
    if rows:
        yield "autopsy_losses", Figure(chart=autopsy_parts.losses_chart(rows, article), **drawn)
    yield "autopsy_scale", Figure(chart=autopsy_parts.scale_chart(rows, article), **drawn)


def _autopsy_slowdown() -> Iterator[tuple[str, Figure]]:
    rows, article = recorded_rows("autopsy_time"), published()["dm2022"]
    drawn = {"experiment": "autopsy_time", "rows": rows}
    if rows:
        yield "autopsy_effects", Figure(chart=autopsy_parts.effects_chart(rows), **drawn)
    for n in article["N"]:
        if step_times.attribution(rows, article, n):
            chart = autopsy_parts.slowdown_chart(rows, article, n)
            yield f"autopsy_slowdown_{n}", Figure(chart=chart, published=True, **drawn)


def _autopsy_crossover() -> Iterator[tuple[str, Figure]]:
    article = published()["dm2022"]
    for model in ("quadratic", "full_quadratic"):  # the article's, and one that fits better
        chart = autopsy_parts.prediction_chart(article, article["N"], model)
        yield f"autopsy_prediction_{model}", Figure(chart=chart, published=True)


def _memory_figures(
    name: str, draw: Callable, experiment: str | None = None
) -> Iterator[tuple[str, Figure]]:
    rows = recorded_rows(experiment or name)
    frame = frames_memory.retrieval_frame(rows, published()["fastweights_logs"])
    yield name, Figure(chart=draw(frame), experiment=experiment or name, rows=rows, published=True)


BOTH = "forward_backward"
# Adding a claim is one entry: its line in the tables, its figures and its card follow.
CLAIMS = (
    Claim(
        title="1 convergence",
        notebook="01_convergence",
        experiment="convergence",
        article=judging.article_convergence,
        judge=judging.convergence,
        figures=_convergence_figures,
        shown="convergence_seeds",
    ),
    Claim(
        title="2 linear scaling",
        notebook="02_linear_scaling",
        experiment="scaling",
        article=judging.article_scaling,
        judge=claims_scaling.scaling,
        figures=_scaling_figures,
        shown="scaling_time",
    ),
    Claim(
        title="3 crossover",
        notebook="03_speed_crossover",
        experiment="crossover",
        article=judging.article_crossover,
        judge=judging.speed_crossover,
        figures=_crossover_figures,
        shown="crossings",
    ),
    Claim(
        title="4 generation",
        notebook="04_transformers_are_rnns",
        experiment="generation",
        article=judging.article_generation,
        judge=claims_generation.generation,
        figures=_generation_figures,
        shown="generation_tokens",
    ),
    Claim(
        title="4 images",
        notebook="04_transformers_are_rnns",
        experiment="images",
        article=lambda article: "Not studied.",
        judge=judging.images,
        figures=_images_figures,
        shown="images_bits",
    ),
    Claim(
        title="5 does “8 to 24 times slower” stand?",
        notebook="05_replication_autopsy",
        experiment="autopsy_time",
        article=lambda article: claims_autopsy.article_said(article)["slowdown"],
        judge=lambda rows: step_times.slowdown(rows, published()["dm2022"]),
        figures=_autopsy_slowdown,
        shown="autopsy_slowdown_64",
        paper_on="crossover",
    ),
    Claim(
        title="5 does “no stable convergence” stand?",
        notebook="05_replication_autopsy",
        experiment="autopsy",
        article=judging.article_convergence,
        judge=claims_autopsy.convergence,
        figures=_autopsy_losses,
        shown="autopsy_losses",
        paper_on="convergence",
    ),
    Claim(
        title="5 does “faster from 3149 on” stand?",
        notebook="05_replication_autopsy",
        experiment="autopsy_time",
        article=lambda article: claims_autopsy.article_said(article)["crossover"],
        judge=lambda rows: step_times.article_crossover(
            rows, [*recorded_rows("step_time"), *recorded_rows("autopsy_longer")]
        ),
        figures=_autopsy_crossover,
        shown="autopsy_prediction_quadratic",
        paper_on="crossover",
    ),
    Claim(
        title="6 capacity",
        notebook="06_fast_weights",
        experiment="capacity",
        article=lambda article: "Not studied.",
        judge=lambda rows: claims_memory.capacity(
            [*rows, *recorded_rows(claims_memory.WITHOUT_EPS)]
        ),
        figures=lambda: _memory_figures("capacity", charts.capacity_chart),
        shown="capacity",
    ),
    Claim(
        title="6 as published",
        notebook="06_fast_weights",
        experiment="capacity",
        article=lambda article: "Not studied.",
        judge=lambda rows: claims_memory.as_published(
            [*rows, *recorded_rows("update_rules"), *recorded_rows(claims_memory.MEANS)],
            published()["fastweights_logs"],
        ),
        figures=lambda: _memory_figures("capacity_solved", charts.solved_chart, "capacity"),
        shown="capacity_solved",
        paper_on="as_published",
    ),
    Claim(
        title="6 update rules",
        notebook="06_fast_weights",
        experiment="update_rules",
        article=lambda article: "Not studied.",
        judge=claims_memory.update_rules,
        figures=lambda: _memory_figures("update_rules", charts.update_rules_chart),
        shown="update_rules",
    ),
)


def sourced_figures() -> dict[str, Figure]:
    """Every figure of the recorded data with its rows, by its file name."""
    return {name: figure for claim in CLAIMS for name, figure in claim.figures()}


def figures() -> dict[str, alt.LayerChart]:
    """Every chart of the recorded data, by its file name."""
    return {name: figure.chart for name, figure in sourced_figures().items()}


def write_report(
    notebooks: Sequence[str] = (),
    parameters: Mapping[str, str] | None = None,
    pdf: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> list[Path]:
    """Write the figures, the README's table, the index and a page a notebook; what was written.

    Args:
        notebooks: only these pages (then no figures), such as "03_speed_crossover".
        parameters: of the notebooks' controls by name, such as {"seq-len": "4096"}; their pages
            show a run with them, and are named after them.
        pdf: print the pages too.

    Raises:
        ValueError: there is no such notebook or parameter, a notebook failed to run, or there is
            nothing to print with.
    """
    known = {path.stem: path for path in sorted(NOTEBOOKS.glob("[0-9]*.py"))}
    for name in notebooks:
        if name not in known:
            raise ValueError(f"no notebook {name!r}: use {', '.join(known)}")
    if parameters and not notebooks:
        raise ValueError(f"name the notebooks that --{next(iter(parameters))} is for")
    printer = find_browser() if pdf else None
    made_from = commit()
    chosen = [known[name] for name in notebooks or known]
    if parameters:
        setting = ", ".join(f"{name} {value}" for name, value in parameters.items())
        say(
            f"running {', '.join(notebooks)} with {setting}, at most "
            f"{controls.STATIC_RUN_BELOW_S / 60:z.0f} minutes each"
        )
    # Runs of their own are timed: one after the other.
    with ThreadPoolExecutor(1 if parameters else min(len(chosen), os.cpu_count() or 1)) as pool:
        pages = pool.map(lambda path: _write_page(path, parameters or {}, made_from), chosen)
        written = []
        if not notebooks:
            drawn = sourced_figures()
            written = [*write_figures(drawn=drawn), *write_pictures(drawn), write_readme_tables()]
            written.append(_write_index(drawn, list(known), made_from))
        written += pages
    if printer:
        pages = [path for path in written if path.suffix == ".html"]
        written += [print_pdf(path, printer) for path in pages]
    return written


def write_figures(
    folder: Path | None = None, drawn: Mapping[str, Figure] | None = None
) -> list[Path]:
    """Write every figure as SVG and PNG."""
    folder, written = folder or FIGURES, []
    for name, figure in (drawn or sourced_figures()).items():
        specification = charts.printable(figure.chart).to_json()
        svg, png = folder / f"{name}.svg", folder / f"{name}.png"
        drawing = _numbered_clips(vl_convert.vegalite_to_svg(specification))
        files.replace_file(svg, drawing)
        files.replace_file(png, vl_convert.svg_to_png(drawing, scale=PNG_SCALE))  # laid out once
        written += [svg, png]
    return written


def _numbered_clips(svg: str) -> str:
    """The figure with its clipping paths numbered from 0: Vega counts on from one to the next."""
    clips = {name: f"clip{i}" for i, name in enumerate(dict.fromkeys(re.findall(r"clip\d+", svg)))}
    return re.sub(r"clip\d+", lambda found: clips[found[0]], svg)


def write_pictures(drawn: Mapping[str, Figure], folder: Path | None = None) -> list[Path]:
    """Write the picture of each notebook's card in the gallery."""
    written = []
    pictured = set()
    for claim in CLAIMS:
        if claim.shown not in drawn or claim.notebook in pictured:  # a card shows its first claim
            continue
        pictured.add(claim.notebook)
        path = (folder or PICTURES) / claim.notebook / "opengraph.png"
        picture = vl_convert.vegalite_to_png(_picture(drawn[claim.shown].chart), scale=0.8)
        files.replace_file(path, picture)
        written.append(path)
    return written


def _without(node: Any, names: Sequence[str]) -> Any:
    if isinstance(node, list):
        return [_without(part, names) for part in node]
    if isinstance(node, dict):
        return {name: _without(part, names) for name, part in node.items() if name not in names}
    return node


def _picture(chart: alt.LayerChart) -> dict:
    """A chart for a card: labels alone, in large letters, in the card's shape."""
    drawn = _without(
        charts.printable(chart, background=PICTURE_TONE).to_dict(), ("legend", "title")
    )
    drawn["config"]["legend"] = {"disable": True}
    drawn["config"]["text"] = {"fontSize": PICTURE_FONT}
    drawn["config"]["axis"] |= {"labelFontSize": PICTURE_FONT}
    drawn["config"]["axis"]["title"] = None
    for _ in range(2):  # the height depends a little on the width
        height = float(re.search(r'height="([\d.]+)"', vl_convert.vegalite_to_svg(drawn))[1])
        drawn["width"] = round(height * PICTURE_SHAPE)
    return drawn


def readme_table() -> str:
    """The claims with what the paper, the article and the rows recorded here say, as Markdown."""
    article = published()["dm2022"]
    lines = []
    for claim in CLAIMS:
        rows = recorded_rows(claim.experiment)
        here = _readme_verdict(claim.judge(rows), controls.device_names(rows))
        lines.append([claim.title, claim.paper, claim.article(article), here])
    steps = recorded_rows("step_time")
    lines.append(["3000 training steps", "–", *judging.step_ratios(article, steps)])
    return markdown_table(["claim", "paper", "2022 replication", "here"], lines, LEFT)


def _readme_verdict(verdict: Verdict, devices: str) -> str:
    return (
        f"**{verdict.status}** on {devices}: {verdict.headline}"
        f"<details><summary>criteria and evidence</summary>{'<br>'.join(verdict.lines)}</details>"
    )


# What stands between the README's marks of each name.
TABLES: dict[str, Callable[[], str]] = {"verdicts": readme_table, "bench": run.recorded_table}


def marks(name: str) -> tuple[str, str]:
    """The lines before and after a table of the README."""
    return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"


def write_readme_tables(readme: Path | None = None) -> Path:
    """Bring the tables between the README's marks up to date with the recorded rows.

    Raises:
        ValueError: the README lacks a mark; it is left as it is.
        FileError: it cannot be written; it is left as it is.
    """
    readme = readme or README
    text = readme.read_text()
    for name, table in TABLES.items():
        begin, end = marks(name)
        before, found_begin, rest = text.partition(begin)
        _, found_end, after = rest.partition(end)
        if not (found_begin and found_end):
            raise ValueError(f"{readme.name} lacks {begin} or {end}: put both back")
        text = f"{before}{begin}\n{table()}\n{end}{after}"
    files.replace_file(readme, text)
    return readme


def commit() -> str:
    """The commit that the report is made from, with its date; whether there are changes in what it
    is made from."""
    try:
        made_from = _git("log", "-1", "--format=%h of %cs")
        changed = _git("status", "--porcelain", "--", "replib", ":(glob)notebooks/*.py", "data")
    except (OSError, subprocess.SubprocessError):
        return "no commit known"
    return f"commit {made_from}{', with changes that are not committed' if changed else ''}"


def _git(*arguments: str) -> str:
    command = ["git", "--no-optional-locks", "-C", str(files.ROOT), "-c", "core.abbrev=12"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _write_page(notebook: Path, parameters: Mapping[str, str], made_from: str) -> Path:
    arguments = [f"--{name}={value}" for name, value in parameters.items()]
    config, around, opened = offline.export(notebook, arguments)
    footer = (
        '<div style="font-size:.85rem; margin-top:1rem"><p>Figures drawn from '
        f"{'; '.join(map(_file_source, opened)) or 'no recorded data'}. Made from {made_from}. "
        '<a href="index.html">All claims</a></p></div>'
    )
    setting = "".join(f"_{name.replace('-', '_')}_{value}" for name, value in parameters.items())
    page = FIGURES / "report" / f"{notebook.stem}{''.join(filter(_in_a_name, setting))}.html"
    files.replace_file(page, offline.offline_page(config, around, footer))
    return page


def _in_a_name(letter: str) -> bool:
    return letter.isalnum() or letter in "._-"


def _file_source(path: Path) -> str:
    content = path.read_bytes()
    rows = _count(content.splitlines()) + ", " if path.suffix == ".jsonl" else ""
    return f"<code>{html.escape(_short(path))}</code> ({rows}{_hash(content)})"


def _short(path: Path) -> str:
    """The path inside the project; of a file elsewhere its name."""
    root = files.ROOT
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name


def _count(rows: Sequence) -> str:
    return f"{len(rows)} row{'s' * (len(rows) != 1)}"


def _hash(content: bytes | str) -> str:
    content = content.encode() if isinstance(content, str) else content
    return f"sha256 {hashlib.sha256(content).hexdigest()[:HASH_DIGITS]}"


def _write_index(drawn: Mapping[str, Figure], notebooks: Sequence[str], made_from: str) -> Path:
    article = published()["dm2022"]
    sections = []
    for claim in CLAIMS:
        rows = recorded_rows(claim.experiment)
        figure = drawn.get(claim.shown)
        sections.append(
            {
                "title": claim.title,
                "page": f"{claim.notebook}.html" if claim.notebook in notebooks else None,
                "paper": claim.paper,
                "article": claim.article(article),
                "verdict": claim.judge(rows),
                "device": controls.device_names(rows),
                "chart": figure.chart.to_json(indent=None) if figure else None,
                "sources": figure.sources if figure else [],
            }
        )
    others = [name for name in notebooks if name not in {claim.notebook for claim in CLAIMS}]
    sources = {name: figure.sources for name, figure in drawn.items()}
    page = FIGURES / "report" / "index.html"
    files.replace_file(page, index_page(sections, sources, others, made_from))
    return page


def find_browser() -> str:
    """The Chromium or Chrome of `CHROMIUM`, else of the path.

    Raises:
        ValueError: there is none.
    """
    named = os.environ.get("CHROMIUM")
    found = shutil.which(named) if named else next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        what = f"CHROMIUM={named} cannot be run" if named else "no Chromium or Chrome was found"
        raise ValueError(
            f"{what}, and the PDF is printed by one: apt-get install chromium, set "
            "CHROMIUM=/path/to/chrome, or open figures/report/index.html and print it"
        )
    return found


def print_pdf(page: Path, browser: str) -> Path:
    """Print a page to a PDF beside it.

    Raises:
        ValueError: the browser wrote none.
    """
    pdf = page.with_suffix(".pdf")
    with tempfile.TemporaryDirectory() as profile:
        printed = Path(profile) / pdf.name
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-pdf-header-footer"]
        command += [f"--user-data-dir={profile}", "--virtual-time-budget=30000"]
        command += [f"--print-to-pdf={printed}", page.resolve().as_uri()]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=PRINT_WITHIN_S)
            why = done.stderr.strip()
        except subprocess.TimeoutExpired:
            why = f"it took more than {PRINT_WITHIN_S} s"
        if not printed.exists():
            raise ValueError(f"{browser} did not print {page.name}: {why}")
        files.replace_file(pdf, printed.read_bytes())
    return pdf
