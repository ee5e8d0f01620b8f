"""What a chart says, read off its specification."""

import json
import re


def title_of(chart) -> str:
    """The title, as a page wide enough has it."""
    text = chart.to_dict()["title"]["text"]
    lines = json.loads(re.search(r"\[[^\[]*\]$", text["expr"])[0]) if "expr" in text else text
    return " ".join(lines).replace("\u00a0", " ")
