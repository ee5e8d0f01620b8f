"""Tables are Markdown that a page shows as it was meant."""

import pytest

from replib.lab.text import LEFT, RIGHT, markdown_table


def test_a_table_has_a_line_each_below_its_head():
    assert markdown_table(["a", "b"], [["1", "2"], ["3", "4"]]).split("\n") == [
        "| a | b |",
        "| :--- | ---: |",
        "| 1 | 2 |",
        "| 3 | 4 |",
    ]


def test_columns_are_aligned_together_or_each():
    assert markdown_table("abc", [], LEFT).endswith("| :--- | :--- | :--- |")
    assert markdown_table("abc", [], [RIGHT, LEFT]).endswith("| :--- | ---: | :--- |")


@pytest.mark.parametrize(
    ("lines", "align"), [([["1"]], RIGHT), ([["1", "2", "3"]], RIGHT), ([], [RIGHT, LEFT])]
)
def test_a_line_that_does_not_fit_its_head_is_refused(lines, align):
    with pytest.raises(ValueError, match="give 2 cells, one for each of"):
        markdown_table(["a", "b"], lines, align)
