import html
import subprocess
import sys
from dataclasses import replace

import pytest
import synthetic

from replib import offline, report
from replib.experiments import recorded_rows


@pytest.fixture
def recorded(data):
    """A data folder with rows of known answers."""
    return synthetic.write_recorded(data)


def command(*arguments):
    """Run `python -m replib report` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "replib", "report", *arguments], capture_output=True, text=True
    )


def test_every_figure_is_written_as_svg_and_png(recorded, tmp_path):
    written = report.write_figures(tmp_path / "figures")
    names = set(report.figures())
    assert {path.name for path in written} == {f"{n}.{kind}" for n in names for kind in SIGNATURES}
    assert {"convergence_128", "scaling_time", "scaling_memory", "crossover_batch_8"} <= names
    for path in written:
        assert path.read_bytes().startswith(SIGNATURES[path.suffix[1:]]), path.name


SIGNATURES = {"svg": b"<svg", "png": b"\x89PNG\r\n"}


def test_figures_are_the_same_bytes_each_time(recorded, tmp_path):
    first, second = (
        {path.name: path.read_bytes() for path in report.write_figures(tmp_path / folder)}
        for folder in ("a", "b")
    )
    assert first == second


def test_a_figure_changes_with_the_rows(recorded, monkeypatch):
    before = report.figures()["crossover_batch_8"].to_json(ensure_ascii=False)
    monkeypatch.setitem(synthetic.CROSSOVERS, "fused", 300)
    synthetic.write_recorded(recorded, "crossover")
    after = report.figures()["crossover_batch_8"].to_json(ensure_ascii=False)
    assert "N ≈ 600" in before and "N ≈ 300" in after and "N ≈ 600" not in after


def test_figures_are_written_before_anything_is_recorded(data, tmp_path):
    written = report.write_figures(tmp_path)
    assert {"scaling_time.svg", "crossover_batch_1.png"} <= {path.name for path in written}
    assert "no data yet" in (tmp_path / "scaling_time.svg").read_text()


def test_readme_table_holds_every_claim_with_the_verdict_of_its_rows(recorded):
    head, rule, *lines = report.readme_table().splitlines()
    assert head == "| claim | paper | 2022 replication | here |"
    *lines, steps = lines
    assert len(lines) == len(report.CLAIMS)
    assert "7.9 to 24.2 times" in steps and "times softmax textbook" in steps
    for line, claim in zip(lines, report.CLAIMS, strict=True):
        verdict = claim.judge(recorded_rows(claim.experiment))
        assert verdict.criteria and claim.paper in line
        assert f"**{verdict.status}**" in line and verdict.headline in line
        assert all(criterion.figure in line for criterion in verdict.criteria)
        assert line.count("|") == 5, "a cell holds a bar, which would split it"
    assert ["**supported**" in line for line in lines] == [True] * len(lines)


def test_readme_table_says_inconclusive_without_rows(data):
    n_claims = report.readme_table().count("**inconclusive** on nothing yet")
    assert n_claims == len(report.CLAIMS)


def test_only_what_is_between_the_marks_is_replaced(recorded, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"# Title\n\n{report.TABLE_BEGIN}\nold\n{report.TABLE_END}\n\nThe end.\n")
    assert report.write_readme_table(readme) == readme
    once = readme.read_text()
    before, rest = once.split(f"{report.TABLE_BEGIN}\n")
    table, after = rest.split(f"\n{report.TABLE_END}")
    assert (before, table, after) == ("# Title\n\n", report.readme_table(), "\n\nThe end.\n")
    report.write_readme_table(readme)
    assert readme.read_text() == once


@pytest.mark.parametrize(
    "text",
    [
        "no marks",
        f"only {report.TABLE_BEGIN}",
        f"only {report.TABLE_END}",
        f"{report.TABLE_END} before {report.TABLE_BEGIN}",
    ],
)
def test_a_readme_without_its_marks_is_left_as_it_is(recorded, tmp_path, text):
    readme = tmp_path / "README.md"
    readme.write_text(text)
    with pytest.raises(ValueError, match="put both back"):
        report.write_readme_table(readme)
    assert readme.read_text() == text


def test_the_readme_is_up_to_date_with_the_recorded_rows():
    table = f"{report.TABLE_BEGIN}\n{report.readme_table()}\n{report.TABLE_END}"
    assert table in report.README.read_text(), "rows were recorded since: run `make report`"


def test_the_figures_are_up_to_date_with_the_recorded_rows():
    names = {path.stem for path in report.FIGURES.glob("*.svg")}
    assert names == set(report.figures()), "run `make report`"


def test_every_picture_of_the_readme_is_there():
    pictures = [part.split(")")[0] for part in report.README.read_text().split("](figures/")[1:]]
    assert pictures and all((report.FIGURES / picture).exists() for picture in pictures)


def test_an_unknown_notebook_is_refused_with_the_known_ones():
    done = command("nosuch")
    assert done.returncode == 2
    assert "no notebook 'nosuch'" in done.stderr and "03_speed_crossover" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_page_holds_the_verdict_and_no_button(recorded, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "FIGURES", tmp_path)
    (page,) = report.write_report(["03_speed_crossover"])
    assert page == tmp_path / "report" / "03_speed_crossover.html"
    outputs = shown(page.read_text())
    assert "✓ supported" in outputs and "N = 600 against softmax (fused)" in outputs
    assert "A static copy" in outputs
    assert "Run (about" not in outputs and "marimo-slider" not in outputs


def shown(page):
    """What the cells of an offline page put out."""
    cells = offline.unpack(page)["session"]["cells"]
    outputs = [output for cell in cells for output in cell["outputs"]]
    return html.unescape("\n".join(str(output.get("data")) for output in outputs))


def test_a_page_says_which_rows_it_shows_and_the_same_rows_make_the_same_page(
    recorded, tmp_path, monkeypatch
):
    monkeypatch.setattr(report, "FIGURES", tmp_path)
    first, second = (report.write_report(["02_linear_scaling"])[0].read_text() for _ in range(2))
    assert first == second
    n_rows = len((recorded / "scaling.jsonl").read_text().splitlines())
    assert f"scaling.jsonl</code> ({n_rows} rows, sha256 " in shown(first)
    assert report.commit() in shown(first)


def test_the_index_holds_every_claim_with_its_rows_and_every_figure(built):
    page = html.unescape((built / "report" / "index.html").read_text())
    for claim in report.CLAIMS:
        verdict = claim.judge(recorded_rows(claim.experiment))
        assert claim.paper in page and verdict.headline in page and verdict.status in page
        assert f'href="{claim.notebook}.html"' in page
    for name, figure in report.sourced_figures().items():
        assert f">{name}<" in page and "; ".join(figure.sources) in page
    assert report.commit() in page


def test_the_rows_of_a_figure_are_named_by_file_number_and_hash(recorded):
    before = report.sourced_figures()["crossover_batch_8"]
    (said,) = before.sources
    assert said.startswith(f"crossover.jsonl, {len(before.rows)} rows, sha256 ")
    changed = replace(before, rows=[*before.rows[:-1], before.rows[-1] | {"seed": 7}])
    assert changed.sources != before.sources
    assert report.sourced_figures()["extrapolation_2022"].sources == ["data/published.json"]


def test_every_card_of_the_gallery_has_a_small_picture(built):
    pictures = {path.parent.name: path for path in built.glob("pictures/*/opengraph.png")}
    assert set(pictures) == {claim.notebook for claim in report.CLAIMS}
    for name, path in pictures.items():
        data = path.read_bytes()
        width, height = (int.from_bytes(data[i : i + 4], "big") for i in (16, 20))
        assert len(data) < 100_000 and abs(width / height - report.PICTURE_SHAPE) < 0.05
        assert (report.PICTURES / name / "opengraph.png").exists(), "run `make report`"


def test_a_page_with_parameters_shows_a_run_with_them(recorded, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "FIGURES", tmp_path)
    quick = {"seq-len": "32", "shortest": "8", "batch": "2", "head-dim": "8", "n-heads": "1"}
    said = []
    (page,) = report.write_report(["03_speed_crossover"], quick | {"repeats": "3"}, say=said.append)
    assert page.name.startswith("03_speed_crossover_seq_len_32_shortest_8_batch_2_")
    assert "seq-len 32" in said[0] and "at most 10 minutes" in said[0]
    outputs = shown(page.read_text())
    assert "Run for this page on this setting: seq_len 32, shortest 8, batch_size 2" in outputs
    assert "Runs of this session" in outputs and "Nothing has run yet" not in outputs


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--seq-len", "4096"], "name the notebooks that --seq-len is for"),
        (["03_speed_crossover", "--seq-len"], "--seq-len has no value"),
        (["03_speed_crossover", "--batch=2", "5"], "'5' belongs to no option"),
        (["03_speed_crossover", "--nonsense", "3"], "--nonsense is not a parameter"),
        (["03_speed_crossover", "--seq-len", "5000"], "--seq-len 32 | 64 | ... | 16384"),
    ],
)
def test_a_wrong_parameter_is_refused_with_what_there_is(arguments, said):
    done = command(*arguments)
    assert done.returncode == 2
    assert said in done.stderr and "Traceback" not in done.stderr


def test_a_pdf_without_a_browser_is_refused_before_anything_is_written(monkeypatch, tmp_path):
    monkeypatch.setattr(report, "FIGURES", tmp_path)
    monkeypatch.setenv("CHROMIUM", str(tmp_path / "none"))
    with pytest.raises(ValueError, match="cannot be run.*apt-get install chromium"):
        report.write_report(["03_speed_crossover"], pdf=True)
    assert not list(tmp_path.iterdir())


def test_a_pdf_is_printed_where_there_is_a_browser(built, monkeypatch):
    try:
        browser = report.find_browser()
    except ValueError as error:
        pytest.skip(str(error))
    pdf = report.print_pdf(built / "report" / "index.html", browser)
    assert pdf.read_bytes().startswith(b"%PDF") and pdf.stat().st_size > 50_000
