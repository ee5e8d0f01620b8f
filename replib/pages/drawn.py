"""Charts of recorded rows, drawn once for all pages of a process: that takes up to a second, for
which a page would wait each time that it is opened."""

from collections.abc import Callable, Mapping
from functools import wraps
from threading import RLock
from typing import Any

import marimo as mo

MOST = 40  # sets of charts that are kept

_kept: dict[tuple, tuple[tuple, dict[str, mo.Html]]] = {}
_drawing = RLock()


def once(draw: Callable[..., Mapping[str, Any]]) -> Callable[..., dict[str, mo.Html]]:
    """A function that returns what `draw` returns, charts or Markdown by their titles, as HTML; and
    the same again as long as it is called with the same objects, which nobody changes."""

    @wraps(draw)
    def drawn(*arguments: Any) -> dict[str, mo.Html]:
        key = (draw, *map(id, arguments))
        with _drawing:
            if key not in _kept:
                shown = {title: mo.as_html(chart) for title, chart in draw(*arguments).items()}
                # With its arguments, as the identity of an object that is gone is given again.
                _kept[key] = arguments, shown
                while len(_kept) > MOST:
                    del _kept[next(iter(_kept))]
            return dict(_kept[key][1])

    return drawn
