"""Tables in Markdown, as the claims, the notebooks and the README show them, and sizes in words."""

from collections.abc import Iterable, Sequence

RIGHT, LEFT = "---:", ":---"


def markdown_table(
    head: Sequence[str], lines: Iterable[Sequence[str]], align: str | Sequence[str] = RIGHT
) -> str:
    """A table whose first column is aligned to the left.

    Args:
        head: a name for each column.
        lines: cells, one for each column.
        align: how the columns after the first are aligned: RIGHT, LEFT, or one of them for each.

    Raises:
        ValueError: a line has more or fewer cells than the head.
    """
    n_others = len(head) - 1
    others = [align] * n_others if isinstance(align, str) else align
    every = [head, [LEFT, *others], *lines]
    if odd := [cells for cells in every if len(cells) != len(head)]:
        raise ValueError(f"give {len(head)} cells, one for each of {list(head)}: {list(odd[0])}")
    return "\n".join(f"| {' | '.join(cells)} |" for cells in every)


def sizes_text(n_layers: int, n_heads: int, head_dim: int) -> str:
    """Of a model, in words."""
    layers, heads = f"layer{'s' * (n_layers != 1)}", f"head{'s' * (n_heads != 1)}"
    return f"{n_layers} {layers}, {n_heads} {heads} of {head_dim}"
