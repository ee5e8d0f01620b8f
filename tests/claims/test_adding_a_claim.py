"""A folder and a line are a new claim: tables, the report and the command line follow."""

import os
import shutil
import subprocess
import sys

import pytest

from replib import files

TOY = {
    "__init__.py": """
from replib.claims.claim import Claim, Statement
from replib.claims.toy import grid

CLAIM = Claim(
    name="toy",
    notebook="09_toy",
    experiments=grid.EXPERIMENTS,
    statements=(
        Statement(
            name="toy",
            title="9 a toy",
            text="Toys are judged.",
            paper="Nobody has said so.",
            experiments=("toy",),
            figure="toy_chart",
        ),
    ),
)
""",
    "grid.py": """
from replib.claims.common import laptop_copy, seed_jobs
from replib.lab.record import Experiment

EXPERIMENTS = (
    Experiment(
        name="toy",
        title="A toy experiment",
        jobs=lambda scale: seed_jobs([laptop_copy("linear", 8, 10)], 1),
    ),
)
""",
    "judge.py": """
from replib.lab.verdict import Criterion, Verdict

VERDICTS = {"toy": lambda rows: Verdict("it plays", (Criterion("it is", True, "1"),))}
""",
    "charts.py": """
from replib.claims.claim import Figure
from replib.pages import style


def figures(rows):
    yield "toy_chart", Figure(chart=style.no_data("A toy chart"), experiment="toy")
""",
}
REPORT = """
from replib.report import write

recorded = write.everything()
print(write.verdict_table(recorded))
print(write._write_index(recorded, "here").read_text())
"""


@pytest.mark.slow
def test_a_folder_and_a_line_bring_a_claim_into_the_list_the_table_and_the_index(tmp_path):
    for name in ("replib", "benchmarks"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(files.ROOT / name, tmp_path / name, ignore=ignored)
    (tmp_path / "data").mkdir()
    shutil.copy(files.ROOT / "data" / "published.json", tmp_path / "data")
    claims = tmp_path / "replib" / "claims"
    (claims / "toy").mkdir()
    for name, text in TOY.items():
        (claims / "toy" / name).write_text(text)
    listed = (claims / "__init__.py").read_text()
    line = '        "update_rules",\n'
    (claims / "__init__.py").write_text(listed.replace(line, f'{line}        "toy",\n'))

    def said(*arguments):
        environment = os.environ | {"PYTHONPATH": str(tmp_path), "REPLIB_DATA": str(tmp_path)}
        command = [sys.executable, *arguments]
        done = subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "A toy experiment" in said("-m", "replib", "list")
    report = said("-c", REPORT)
    assert "| 9 a toy | Nobody has said so. | Not studied. | **supported**: it plays" in report
    assert '<a href="09_toy.html">9 a toy</a></figcaption>' in report
    assert "<li>toy_chart: toy.jsonl, 0 rows" in report
