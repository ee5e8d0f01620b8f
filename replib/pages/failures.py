"""A cell that fails on a served page leaves a line in its place that says what is wrong.

marimo tells such a page nothing but a number to look up in the server's log, and shows no trace of
the cell.
"""

import html
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

try:  # marimo's own, as of 0.25; with another version pages are as marimo makes them
    from marimo._messaging.cell_output import CellChannel
    from marimo._messaging.notification_utils import CellNotificationUtils
    from marimo._runtime.context.utils import get_mode
except ImportError:
    CellNotificationUtils = None

STYLE = (Path(__file__).parent / "style.css").read_text(encoding="utf-8")


def show_on_pages() -> None:
    """From now on cells that fail in this process show a line on served pages."""
    known = getattr(CellNotificationUtils, "broadcast_error", None)
    if known is None or hasattr(known, "shows_failures"):
        return

    def broadcast_error(data, clear_console, cell_id, *others, **options) -> None:
        line = failure_html(data) if get_mode() == "run" else ""
        if not line:
            known(data, clear_console, cell_id, *others, **options)
            return
        told = "; ".join(error.describe() for error in data)
        print(f"replib: a part of a page failed: {told}", file=sys.__stderr__, flush=True)
        # Not as an error: of a cell that has one the page shows nothing.
        CellNotificationUtils.broadcast_output(
            channel=CellChannel.OUTPUT,
            mimetype="text/html",
            data=line,
            cell_id=cell_id,
            status=None,
        )

    broadcast_error.shows_failures = True
    CellNotificationUtils.broadcast_error = staticmethod(broadcast_error)


def failure_html(errors: Sequence[Any]) -> str:
    """The line of a cell's errors, as marimo describes them; empty for one that was stopped."""
    said = []
    for error in errors:
        kind, where = getattr(error, "exception_type", None), getattr(error, "raising_cell", None)
        if where is not None:
            said.append("Nothing is shown here, as a part of the page that it needs failed.")
        elif kind is not None:
            said.append(f"This part of the page failed: {kind}: {error.describe()}")
    text = html.escape(" ".join(dict.fromkeys(said)))
    return text and f'<style>{STYLE}</style><p role="alert" class="r-failure">{text}</p>'
