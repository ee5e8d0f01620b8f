"""Digits that the kept models complete pixel by pixel, in the generation notebook."""

import html
import itertools
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import marimo as mo
import torch

from replib.lab.kept_models import Kept, complete, load_model
from replib.lab.memory_use import TIMING_LOCK
from replib.lab.runs.generation import GenerationConfig, state_bytes
from replib.lab.verdict import three_digits
from replib.pages import layout, style
from replib.pages.controls import Control
from replib.pages.processor import on_one_core
from replib.tasks.image_files import DATASETS, load_images

KEPT_AS = {"linear": ("recurrent", "recurrent state"), "softmax": ("cache", "cache")}
N_COMPLETIONS = 6  # of each mechanism, side by side
GAP = 1  # pixels of a digit between two of them
BAR_UNITS = 16  # height of the highest bar
DIGITS = DATASETS["digits"]
ROWS, COLUMNS, _ = DIGITS.shape
_TAKES = itertools.count()  # an animation of a new name begins anew, though its page is the same


def choices() -> list[Control]:
    """The controls of a completion."""
    return [
        Control("digit", "Test image", tuple(range(DIGITS.n_test)), 3),
        Control("rows_given", "Rows given", tuple(range(ROWS)), 4),
        Control("temperature", "Temperature", (0.1, 0.3, 0.5, 0.7, 0.85, 1.0, 1.2, 1.5), 1.0),
        Control("draw_seed", "Seed", tuple(range(20)), 0),
    ]


def kept_models() -> tuple[dict[str, Kept], mo.Html]:
    """The kept model of each mechanism, and what is wrong with those that are not there."""
    models, problems = {}, []
    for name in KEPT_AS:
        try:
            models[name] = load_model(name)
        except ValueError as error:
            problems.append(str(error))
    return models, layout.callout("\n".join(problems)) if problems else mo.md("")


class Completed(NamedTuple):
    """Images (B, N) of levels, the milliseconds that each token took that was drawn, and the bytes
    that one image needs to keep after each token."""

    levels: list[list[int]]
    token_ms: list[float]
    kept_bytes: list[int]


def completed(kept: Kept, settings: Mapping[str, Any]) -> Completed:
    """What a model makes of the first rows of a test image, several times."""
    image = load_images("digits").test[settings["digit"]].flatten().long()
    given = image[: settings["rows_given"] * COLUMNS].expand(N_COMPLETIONS, -1)
    generator = torch.Generator().manual_seed(settings["draw_seed"])
    drawing = complete(kept, given, temperature=settings["temperature"], generator=generator)
    token_ms = []
    with TIMING_LOCK:
        so_far, began = [next(drawing)], perf_counter()
        for levels in drawing:
            so_far.append(levels)
            token_ms.append(1000 * (perf_counter() - began))
            began = perf_counter()
    model = kept.training.config.model
    sizes = {name: getattr(model, name) for name in ("n_layers", "n_heads", "head_dim")}
    way, _ = KEPT_AS[model.attention]
    kept_bytes = [
        state_bytes(GenerationConfig(way=way, seq_len=n + 1, **sizes)) for n in range(len(image))
    ]
    return Completed(so_far[-1].tolist(), token_ms, kept_bytes)


def completion(models: Mapping[str, Kept], settings: Mapping[str, Any]) -> mo.Html:
    """A test image, and how the models draw the rest of it, a pixel at a time: what each token took
    and what is kept after it. A static page, which is the same each time, has no times."""
    if not models:
        return mo.md("*No trained model is there.*")
    found = {name: on_one_core(completed, kept, settings) for name, kept in models.items()}
    digits, n_rows = load_images("digits"), settings["rows_given"]
    label = digits.test_labels[settings["digit"]]
    real = digits.test[settings["digit"]].flatten().tolist()
    given = f"{n_rows} row{'s' * (n_rows != 1)} of a {label} given" if n_rows else "Nothing given"
    told = f"<p><strong>{given}, the rest drawn a pixel at a time</strong>"
    timed = not layout.in_static_page()
    if timed:
        seconds = sum(map(sum, (one.token_ms for one in found.values()))) / 1000
        told += f" in {three_digits(seconds)} s, and shown more slowly"
    told += "; the first image is the real one.</p>"
    slowest, largest = (
        max(max(getattr(one, name), default=0) for one in found.values())
        for name in ("token_ms", "kept_bytes")
    )
    take, n_given = next(_TAKES), n_rows * COLUMNS
    rows = []
    for name, one in found.items():
        colour, (_, keeps) = style.colour(name), KEPT_AS[name]
        images = _svg(
            _pixels([real, *one.levels], n_given, colour),
            ((COLUMNS + GAP) * (1 + N_COMPLETIONS) - GAP, ROWS),
            f"{N_COMPLETIONS} digits that {name} attention completed, beside the real one",
        )
        kilobytes = [f"{three_digits(end / 1000)} kB" for end in one.kept_bytes[:: len(real) - 1]]
        same = kilobytes[0] == kilobytes[1]
        memory = f"{kilobytes[0]} at every token" if same else " to ".join(kilobytes)
        shown = [images, _bars(one.kept_bytes, 0, largest, colour, n_given, f"kept: {memory}")]
        if timed and one.token_ms:
            times = f"time: {three_digits(median(one.token_ms))} ms a token (median)"
            shown.append(_bars(one.token_ms, n_given, slowest, colour, n_given, times))
        count = f'<span class="r-count" style="--r-n:{len(real)}"></span>'
        rows.append(
            f"<p>{name} attention, {keeps}: token {count} of {len(real)}</p>"
            f'<div class="r-takes">{"".join(map(str, shown))}</div>'
        )
    return layout.styled(
        f"<style>@keyframes r-take{take} {{ from, to {{ visibility: hidden; }} }} "
        f"@keyframes r-count{take} {{ from {{ --r-n: {n_given}; }} }}</style>"
        f'<section class="r-digits" style="--take:r-take{take};--counting:r-count{take};'
        f'--tokens:{len(real) - n_given}">{told}{"".join(rows)}</section>'
    )


def _pixels(images: Sequence[Sequence[int]], n_given: int, colour: str) -> Iterable[str]:
    """Each position of all images, the first of which is there from the start."""
    for order in range(ROWS * COLUMNS):
        for real in (True, False):
            grey = real or order < n_given
            yield _at(None if grey else order - n_given, style.NEUTRAL if grey else colour)
            for place, levels in enumerate(images):
                if levels[order] and (place == 0) == real:
                    x, y = place * (COLUMNS + GAP) + order % COLUMNS, order // COLUMNS
                    opacity = f"{levels[order] / (DIGITS.n_levels - 1):z.3g}"
                    yield f'<rect x="{x}" y="{y}" width="1" height="1" opacity="{opacity}"/>'
            yield "</g>"


def _at(i: int | None, colour: str) -> str:
    """The beginning of what appears with the i-th token that is drawn, or is there from the start
    where that is None or negative."""
    appears = "" if i is None or i < 0 else f' class="r-drawn" style="--i:{i}"'
    return f'<g fill="{colour}"{appears}>'


def _bars(
    values: Sequence[float], first: int, most: float, colour: str, n_given: int, said: str
) -> str:
    """A bar for each token from a position on, as high as its share of `most`."""
    bars = []
    for order, value in enumerate(values, first):
        height = BAR_UNITS * value / (most or 1)
        bars.append(
            f'{_at(order - n_given, colour)}<rect x="{order}" y="{BAR_UNITS - height:z.3f}" '
            f'width=".8" height="{height:z.3f}"/></g>'
        )
    drawn = _svg(bars, (ROWS * COLUMNS, BAR_UNITS), said, stretched=True)
    return f"<figure>{drawn}<figcaption>{html.escape(said)}</figcaption></figure>"


def _svg(parts: Iterable[str], size: tuple[int, int], said: str, stretched: bool = False) -> str:
    stretch = 'preserveAspectRatio="none"' if stretched else ""
    return (
        f'<svg role="img" aria-label="{html.escape(said)}" viewBox="0 0 {size[0]} {size[1]}" '
        f"{stretch}>{''.join(parts)}</svg>"
    )
