"""The pictures of the notebooks' cards in marimo's gallery, made from the recorded charts."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import altair as alt
import vl_convert

from replib import charts, store

ASSETS = store.ROOT / "notebooks" / "__marimo__" / "assets"
# A notebook's card shows one figure of the report.
PICTURES = {
    "01_convergence": "convergence_64",
    "02_linear_scaling": "scaling_time",
    "03_speed_crossover": "crossings",
    "04_transformers_are_rnns": "generation_tokens",
}
ASPECT = 1200 / 630  # of a card's picture; another shape is cropped
# A tone that neither glares on the dark page nor vanishes on the light one.
BACKGROUND = "#F1EFE8"
PADDING = 14
LEGENDS = ("color", "fill", "opacity", "shape", "stroke", "strokeDash")


def write_gallery(figures: Mapping[str, alt.LayerChart], folder: Path = ASSETS) -> list[Path]:
    """Write the pictures of those notebooks whose figure there is; returns what was written."""
    written = []
    for notebook, name in PICTURES.items():
        if name in figures:
            path = folder / notebook / "opengraph.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture(figures[name]))
            written.append(path)
    return written


def picture(chart: alt.LayerChart) -> bytes:
    """A chart as a PNG in the shape of a card: without title and legend, which a card is too small
    for, and as wide as its height asks for."""
    tall = _specification(chart, 720)
    height = float(re.search(r'<svg[^>]* height="([\d.]+)"', vl_convert.vegalite_to_svg(tall))[1])
    return vl_convert.vegalite_to_png(_specification(chart, round(ASPECT * height)))


def _specification(chart: alt.LayerChart, width: int) -> str:
    specification = charts.printable(chart, width=width, background=BACKGROUND).to_dict()
    specification.pop("title", None)
    specification["padding"] = PADDING
    _drop_legends(specification)
    return json.dumps(specification)


def _drop_legends(part: object) -> None:
    if isinstance(part, dict):
        for name in LEGENDS:
            channel = part.get("encoding", {}).get(name)
            if isinstance(channel, dict) and "field" in channel:
                channel["legend"] = None
        part = list(part.values())
    if isinstance(part, list):
        for one in part:
            _drop_legends(one)
