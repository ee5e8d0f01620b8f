"""The marimo parts of drawing with the kept pixel models, in the generation notebook."""

from collections.abc import Mapping, Sequence
from time import sleep
from typing import Any

import altair as alt
import marimo as mo
import torch
from torch import Tensor

from replib.claims.images import charts
from replib.lab.kept_models import Drawing, Kept, complete, draw, load_model
from replib.pages.controls import Control
from replib.pages.live import on_one_core
from replib.tasks.image_files import DATASETS, load_images

MECHANISMS = ("linear", "softmax")
N_COMPLETIONS = 6  # of each mechanism, side by side
PAUSE_S = 0.03  # after each pixel that is shown: a browser draws some 30 charts a second
DIGITS = DATASETS["digits"]


def choices() -> list[Control]:
    """The controls of a completion."""
    rows, digits = range(DIGITS.shape[0]), range(DIGITS.n_test)
    return [
        Control("digit", "Test image", tuple(digits), 3),
        Control("rows_given", "Rows given", tuple(rows), 4),
        Control("temperature", "Temperature", (0.1, 0.3, 0.5, 0.7, 0.85, 1.0, 1.2, 1.5), 1.0),
        Control("draw_seed", "Seed", tuple(range(20)), 0),
        Control("drawn_by", "Drawn by", MECHANISMS, MECHANISMS),
    ]


def kept_models() -> tuple[dict[str, Kept], mo.Html]:
    """The kept model of each mechanism, and what is wrong with those that are not there."""
    models, problems = {}, []
    for name in MECHANISMS:
        try:
            models[name] = load_model(name)
        except ValueError as error:
            problems.append(str(error))
    if not problems:
        return models, mo.md("")
    return models, mo.callout(mo.plain_text("\n".join(problems)), kind="warn")


def completion(models: Mapping[str, Kept], settings: Mapping[str, Any], *, slowly: bool) -> mo.Html:
    """A test image, and what the models make of its first rows; `slowly` shows each pixel as it is
    drawn."""
    chosen = {name: models[name] for name in settings["drawn_by"] if name in models}
    if not chosen:
        return mo.md("*Choose at least one model that is there.*")
    if slowly:
        _draw_slowly(chosen, settings)
    drawings = on_one_core(_draw, chosen, settings)
    strips = {one.attention: one.levels.tolist() for one in drawings}
    return _chart(strips, settings, slider=True)


def _draw(models: Mapping[str, Kept], settings: Mapping[str, Any]) -> list[Drawing]:
    """A completion of each model."""
    return [draw(kept, _given(settings), **_options(settings)) for kept in models.values()]


def _draw_slowly(models: Mapping[str, Kept], settings: Mapping[str, Any]) -> None:
    started = [complete(kept, _given(settings), **_options(settings)) for kept in models.values()]
    for levels in zip(*started, strict=True):
        strips = {name: some.tolist() for name, some in zip(models, levels, strict=True)}
        mo.output.replace(_chart(strips, settings, slider=False))
        sleep(PAUSE_S)


def _given(settings: Mapping[str, Any]) -> Tensor:
    """The first rows of the test image, once for each completion."""
    image = load_images("digits").test[settings["digit"]].flatten()
    n_given = settings["rows_given"] * DIGITS.shape[1]
    return image[:n_given].long().expand(N_COMPLETIONS, -1)


def _options(settings: Mapping[str, Any]) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(settings["draw_seed"])
    return {"temperature": settings["temperature"], "generator": generator}


def _chart(
    strips: Mapping[str, Sequence[Sequence[int]]], settings: Mapping[str, Any], *, slider: bool
) -> alt.LayerChart:
    digits, (h, w, _) = load_images("digits"), DIGITS.shape
    n_given = settings["rows_given"] * w
    image = digits.test[settings["digit"]].flatten().tolist()
    frame = charts.drawings(
        [
            ("the test image", None, [image], h * w),
            *((f"{name} attention", name, made, n_given) for name, made in strips.items()),
        ],
        DIGITS.shape,
        DIGITS.n_levels,
    )
    label, n_rows = digits.test_labels[settings["digit"]], settings["rows_given"]
    rows = "1 row" if n_rows == 1 else f"{n_rows} rows"
    title = f"{rows} of a {label} given, the rest drawn" if n_rows else "Nothing given, all drawn"
    how = "grey: given or real; coloured: drawn, row by row"
    return charts.digits_chart(frame, shape=(h, w), title=title, subtitle=how, slider=slider)
