"""What readers are told shows no negative zero, whatever a processor's rounding makes of 0."""

import ast
import re
from pathlib import Path

import altair as alt
import polars as pl
import pytest
import vl_convert

from replib.claims.generation.judge import constant_cost_verdict
from replib.claims.images.judge import images_verdict
from replib.lab.statistics import Exponent, Ratio
from replib.lab.verdict import exponent_text, ratio_text

HERE = Path(__file__).parents[1]
# Modules whose numbers readers see; others print sizes and times, which have no sign.
TIMES = ("controls", "live", "processor", "running", "workers")
TOLD = [
    *HERE.glob("replib/claims/**/*.py"),
    *(path for path in HERE.glob("replib/pages/*.py") if path.stem not in TIMES),
    *HERE.glob("replib/report/index.py"),
    *HERE.glob("replib/lab/verdict.py"),
    *HERE.glob("notebooks/*.py"),
]
FLOAT = re.compile(r"(.?[<>=^])?[-+ ]?(?P<z>z?)#?0?\d*[,_]?(\.\d*)?[eEfFgG%]")
ZEROS = [1e-17, -1e-17, -0.0, -0.004]


def floats(path):
    """The format specifications of floating point numbers in the f-strings of a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FormattedValue) and node.format_spec is not None:
            parts = (getattr(part, "value", "2") for part in node.format_spec.values)
            spec = "".join(part if isinstance(part, str) else "2" for part in parts)
            if found := FLOAT.fullmatch(spec):
                yield f"{path.relative_to(HERE)}:{node.lineno} :{spec}", bool(found["z"])


def test_every_float_that_is_told_says_z_in_its_format():
    specs = [one for path in TOLD for one in floats(path)]
    assert len(specs) > 100
    assert [place for place, coerced in specs if not coerced] == []  # write :z.2f, not :.2f


@pytest.mark.parametrize("path", TOLD, ids=lambda path: str(path.relative_to(HERE)))
def test_no_chart_asks_for_a_sign_which_vega_keeps_on_zero(path):
    assert not re.search(r"""format=["'][^"']*\+""", path.read_text())


@pytest.mark.parametrize("zero", ZEROS)
def test_a_zero_has_no_sign_in_exponents_intervals_differences_and_ratios(zero):
    still = Exponent(zero, zero, -zero, 1, 8)
    rising = Exponent(1, 0.9, 1.1, 1, 8)
    told = [exponent_text(still), str(constant_cost_verdict(still, rising, still, rising))]
    told.append(str(images_verdict([1 + zero / 10] * 3, [1.0] * 3, histogram=2.0)))
    told.append(ratio_text(Ratio(1 + zero, 1 + zero, 1 - zero)))
    for text in told:
        assert not re.search(r"[-\u2212]0(\.0*)?(?![\d.])", text), text
    assert exponent_text(still).startswith("0.00 (0.00 to 0.00)")


@pytest.mark.parametrize("zero", ZEROS)
def test_a_zero_has_no_sign_in_the_numbers_of_a_chart(zero):
    text = alt.Text("x:Q", format=".2f")
    chart = alt.Chart(pl.DataFrame({"x": [zero]})).mark_text().encode(text=text)
    assert ">0.00<" in vl_convert.vegalite_to_svg(chart.to_json())
