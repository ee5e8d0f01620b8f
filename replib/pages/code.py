"""The library's own lines on a page, beside the equation that they compute."""

import ast
import inspect
import textwrap
from collections.abc import Callable

import marimo as mo

from replib.pages.layout import styled


def source(function: Callable, equation: str = "") -> mo.Html:
    """An equation in LaTeX, and the function's source beside it, without its docstring; below it
    where there is no room. Of a long function some lines are in view, and the rest is scrolled to.

    Raises:
        OSError: the source is not at hand.
    """
    where = f"`{function.__module__}.{function.__qualname__}`"
    lines = mo.md(f"{where}\n\n```python\n{lines_of(function)}\n```")
    if not equation:
        return styled(lines.text)  # with the style sheet, as a fold or a tab has none of the page's
    above, scrolled = mo.md(f"$$\n{equation}\n$$"), lines.text.replace("<pre", '<pre tabindex="0"')
    return styled(f'<div class="r-source"><div>{above.text}</div><div>{scrolled}</div></div>')


def lines_of(function: Callable) -> str:
    """The source of a function or class as it stands, without its docstring."""
    lines = textwrap.dedent(inspect.getsource(function)).splitlines()
    (node,) = ast.parse("\n".join(lines)).body
    if ast.get_docstring(node) is not None:
        said = node.body[0]
        del lines[said.lineno - 1 : said.end_lineno]
    return "\n".join(lines)
