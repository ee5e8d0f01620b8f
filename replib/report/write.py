"""Static output of the recorded data: figures, pages, and the tables of documents.

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
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import altair as alt
import vl_convert

from benchmarks import run
from replib import files
from replib.claims import CLAIMS, PAGES
from replib.claims.claim import Figure, Recorded, Statement
from replib.claims.crossover.steps import step_ratios
from replib.claims.start import CARDS
from replib.lab.text import LEFT, markdown_table
from replib.pages import running, style, verdict_cards
from replib.published import published
from replib.report import offline
from replib.report.index import SUBJECT, TITLE, index_page

NOTEBOOKS = files.ROOT / "notebooks"
FIGURES = files.ROOT / "figures"
ROOT = files.ROOT  # of the documents whose tables are written
PNG_SCALE = 2.0  # pixels a unit, sharp on screens of today
PICTURE_SHAPE = 1.91  # width to height of a card's picture; what is beyond is cut off
PICTURE_TONE = "#F4F2EC"  # neither glares on the dark page nor vanishes on the light one
PICTURE_FONT = 17  # pixels, of pictures that are shown about half as large
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
PRINT_WITHIN_S = 120
PAPER = "--window-size=720,1040"  # charts are drawn as wide as the text of a sheet of A4
HASH_DIGITS = 12
PLACES = re.compile(r' (?:d|transform|x|y|x1|x2|y1|y2|width|height|points)="[^"]*"')
LONG_NUMBER = re.compile(r"-?\d+\.\d+(?:e-\d+)?")  # to be rounded to a hundredth of a pixel


def sources_of(figure: Figure) -> list[str]:
    """The files that a figure is drawn from, with how many rows of them, and their hash."""
    said = []
    if figure.experiment:
        path = files.data_folder() / f"{figure.experiment}.jsonl"
        said.append(f"{_short(path)}, {_count(figure.rows)}, {_hash(json.dumps(figure.rows))}")
    return said + ["data/published.json"] * figure.published


def everything() -> list[Recorded]:
    """What is recorded of each claim."""
    return [claim.recorded() for claim in CLAIMS]


def all_figures(recorded: Sequence[Recorded]) -> dict[str, Figure]:
    """Every figure of the recorded data, by its file name."""
    return {name: one for claim in recorded for name, one in claim.figures.items()}


def write_report(
    notebooks: Sequence[str] = (),
    parameters: Mapping[str, str] | None = None,
    pdf: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> list[Path]:
    """Write the figures, the documents' tables, the index and a page a notebook; what was written.

    Args:
        notebooks: only these pages (then no figures), such as "03_speed_crossover".
        parameters: of the notebooks' controls by name, such as {"seq-len": "4096"}; their pages
            show a run with them, and are named after them.
        pdf: print the pages too.

    Raises:
        ValueError: there is no such notebook or parameter, a notebook failed to run, or there is
            nothing to print with.
    """
    known = {stem: NOTEBOOKS / f"{stem}.py" for stem in PAGES.values()}
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
            f"{running.STATIC_RUN_BELOW_S / 60:z.0f} minutes each"
        )
    # Runs of their own are timed: one after the other.
    with ThreadPoolExecutor(1 if parameters else min(len(chosen), os.cpu_count() or 1)) as pool:
        pages = pool.map(lambda path: _write_page(path, parameters or {}, made_from), chosen)
        written = []
        if not notebooks:
            recorded = everything()
            written = [*write_figures(all_figures(recorded)), *write_pictures(recorded)]
            written += [*write_tables(recorded), _write_index(recorded, made_from)]
        written += pages
    if printer:
        pages = [path for path in written if path.suffix == ".html"]
        written += [print_pdf(path, printer) for path in pages]
    return written


def write_figures(drawn: Mapping[str, Figure], folder: Path | None = None) -> list[Path]:
    """Write figures as SVG and PNG."""
    folder, written = folder or FIGURES, []
    for name, figure in drawn.items():
        svg, png = folder / f"{name}.svg", folder / f"{name}.png"
        drawing = _svg(figure)
        files.replace_file(svg, drawing)
        files.replace_file(png, vl_convert.svg_to_png(drawing, scale=PNG_SCALE))  # laid out once
        written += [svg, png]
    return written


def _svg(figure: Figure) -> str:
    """The drawing, the same wherever it is made: processors differ in the last digits of places,
    and Vega counts its clipping paths on from one figure to the next."""
    svg = vl_convert.vegalite_to_svg(style.printable(figure.chart).to_json())
    svg = PLACES.sub(lambda found: LONG_NUMBER.sub(_rounded, found[0]), svg)
    clips = {name: f"clip{i}" for i, name in enumerate(dict.fromkeys(re.findall(r"clip\d+", svg)))}
    return re.sub(r"clip\d+", lambda found: clips[found[0]], svg)


def _rounded(number: re.Match) -> str:
    return f"{float(number[0]):z.2f}".rstrip("0").rstrip(".")


def write_pictures(recorded: Sequence[Recorded], folder: Path | None = None) -> list[Path]:
    """Write the picture of each page's card on the start page: its first statement's figure."""
    shown: dict[str, Figure] = {}
    for one in recorded:
        for statement in one.claim.listed:
            if statement.figure in one.figures:
                shown.setdefault(one.claim.notebook, one.figures[statement.figure])
    written = []
    for address, notebook in PAGES.items():
        if notebook in shown:
            path = (folder or CARDS) / f"{address}.png"
            drawn = _picture(shown[notebook].chart)
            files.replace_file(path, vl_convert.vegalite_to_png(drawn, scale=0.8))
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
    drawn = _without(style.printable(chart, background=PICTURE_TONE).to_dict(), ("legend", "title"))
    drawn["config"]["legend"] = {"disable": True}
    drawn["config"]["text"] = {"fontSize": PICTURE_FONT}
    drawn["config"]["axis"] |= {"labelFontSize": PICTURE_FONT}
    drawn["config"]["axis"]["title"] = None
    for _ in range(2):  # the height depends a little on the width
        height = float(re.search(r'height="([\d.]+)"', vl_convert.vegalite_to_svg(drawn))[1])
        drawn["width"] = round(height * PICTURE_SHAPE)
    return drawn


def headline_table(recorded: Sequence[Recorded]) -> str:
    """The claims with what the rows recorded here say, a line each, as Markdown."""
    lines = []
    for one in recorded:
        for statement in one.claim.listed:
            verdict = one.verdict(statement)
            here = f"{_label(one, statement)}: {verdict.says}"
            lines.append([statement.title, statement.text, here])
    return markdown_table(["claim", "in a sentence", "here"], lines, LEFT)


def verdict_table(recorded: Sequence[Recorded]) -> str:
    """The claims with what the paper, the article and the rows recorded here say, as Markdown."""
    lines = []
    for one in recorded:
        for statement in one.claim.listed:
            more = statement.more
            says = {"Paper": statement.paper_says, "2022 replication": statement.article_says}
            told = [" ".join(filter(None, (x, more.get(by)))) for by, x in says.items()]
            lines.append([statement.title, *told, _verdict_cell(one, statement)])
    steps = next(one.rows["step_time"] for one in recorded if "step_time" in one.rows)
    lines.append(["3000 training steps", "–", *step_ratios(published()["dm2022"], steps)])
    return markdown_table(["claim", "paper", "2022 replication", "here"], lines, LEFT)


def _label(one: Recorded, statement: Statement) -> str:
    """A verdict's label, and on which device its rows were computed."""
    verdict = one.verdict(statement)
    where = f" on {one.device(statement)}" if verdict.recorded else ""
    return f"**{verdict_cards.label_of(verdict, statement.refutes)}**{where}"


def _verdict_cell(one: Recorded, statement: Statement) -> str:
    verdict = one.verdict(statement)
    return (
        f"{_label(one, statement)}: {verdict.headline}"
        f"<details><summary>criteria and evidence</summary>{'<br>'.join(verdict.lines)}</details>"
    )


Table = Callable[[Sequence[Recorded]], str]
# The tables of each document, by the name of the marks that they stand between.
TABLES: dict[str, dict[str, Table]] = {
    "README.md": {"verdicts": headline_table},
    "docs/verdicts.md": {"verdicts": verdict_table},
    "docs/benchmarks.md": {"bench": lambda recorded: run.recorded_table()},
}


def marks(name: str) -> tuple[str, str]:
    """The lines before and after a table of a document."""
    return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"


def write_tables(recorded: Sequence[Recorded], root: Path | None = None) -> list[Path]:
    """Bring the tables of the documents up to date with the recorded rows.

    Raises:
        ValueError: a document lacks a mark; it is left as it is.
        FileError: one cannot be written; it is left as it is.
    """
    written = []
    for document, tables in TABLES.items():
        path = (root or ROOT) / document
        text = path.read_text()
        for name, table in tables.items():
            begin, end = marks(name)
            before, found_begin, rest = text.partition(begin)
            _, found_end, after = rest.partition(end)
            if not (found_begin and found_end):
                raise ValueError(f"{document} lacks {begin} or {end}: put both back")
            text = f"{before}{begin}\n{table(recorded)}\n{end}{after}"
        files.replace_file(path, text)
        written.append(path)
    return written


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
    config, around = offline.export(notebook, arguments)
    reads = [name for one in CLAIMS if one.notebook == notebook.stem for name in one.reads]
    opened = [files.data_folder() / f"{name}.jsonl" for name in dict.fromkeys(reads)]
    header = f"<p>A page of <a href='index.html'>{TITLE}</a>, {SUBJECT}.</p>"
    drawn_from = "; ".join(_file_source(path) for path in opened if path.exists())
    footer = f"<p>Figures drawn from {drawn_from or 'no rows'}. Made from {made_from}.</p>"
    setting = "".join(f"_{name.replace('-', '_')}_{value}" for name, value in parameters.items())
    page = FIGURES / "report" / f"{notebook.stem}{''.join(filter(_in_a_name, setting))}.html"
    files.replace_file(page, offline.offline_page(config, around, header, footer))
    return page


def _in_a_name(letter: str) -> bool:
    return letter.isalnum() or letter in "._-"


def _file_source(path: Path) -> str:
    content = path.read_bytes()
    rows = _count(content.splitlines())
    return f"<code>{html.escape(_short(path))}</code> ({rows}, {_hash(content)})"


def _short(path: Path) -> str:
    """The path inside the project; of a file elsewhere its name."""
    root = files.ROOT
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name


def _count(rows: Sequence) -> str:
    return f"{len(rows)} row{'s' * (len(rows) != 1)}"


def _hash(content: bytes | str) -> str:
    content = content.encode() if isinstance(content, str) else content
    return f"sha256 {hashlib.sha256(content).hexdigest()[:HASH_DIGITS]}"


def _write_index(recorded: Sequence[Recorded], made_from: str) -> Path:
    figures = all_figures(recorded)
    shown = {statement.figure for one in recorded for statement in one.claim.listed}
    drawn = {name: _svg(figures[name]) for name in figures if name in shown}
    sources = {name: sources_of(figure) for name, figure in figures.items()}
    page = FIGURES / "report" / "index.html"
    files.replace_file(page, index_page(recorded, drawn, sources, made_from))
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
        command += [f"--user-data-dir={profile}", "--virtual-time-budget=30000", PAPER]
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
