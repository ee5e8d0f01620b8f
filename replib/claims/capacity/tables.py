"""The tables of fast weight memories, as Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from replib.claims.capacity.memories import (
    COMPARED,
    MEMORIES,
    MIN_SEEDS,
    best_losses,
    keys_text,
    label,
    loss_text,
    of_setting,
    one_run,
    order,
    published_losses,
    solved_keys,
    typical,
)
from replib.lab.record import core_seconds
from replib.lab.store import Row
from replib.lab.text import markdown_table


def capacity_table(rows: Sequence[Row], published: Mapping[str, Any]) -> str:
    """Keys solved and best losses of setting 1, here and published, as Markdown."""
    return _table(rows, published, "setting1", COMPARED)


def update_rules_table(rows: Sequence[Row], published: Mapping[str, Any]) -> str:
    """Keys solved and best losses of setting 2, here, here evaluated as published, and published,
    as Markdown."""
    return _table(rows, published, "setting2", (20, 60, 100, 200)) + (
        "\n\nThe published losses of this setting are of sequences of S writes, the first here of "
        "2·S, the second of S."
    )


def _table(
    rows: Sequence[Row], published: Mapping[str, Any], setting: str, keys: Sequence[int]
) -> str:
    second = setting == "setting2"
    found = of_setting(rows, with_replacement=second)
    alike = best_losses(rows, half_length=True)
    theirs = published_losses(published, setting)
    lines = []
    for name in order({*found, *theirs}):
        sides = [found.get(name, {}), one_run(theirs.get(name, {}))]
        if second:
            sides.insert(1, alike.get(name, {}))
        memory = MEMORIES[name]
        solved = (keys_text(solved_keys(losses)) if losses else "–" for losses in sides)
        cells = [str(memory.n_features or "–"), " / ".join(solved)]
        for n in keys:
            losses = [typical(side).get(n) for side in sides]
            cells.append(" / ".join("–" if x is None else loss_text(x) for x in losses))
        told = label(memory, rule=second).replace(" ", "\N{NO-BREAK SPACE}")
        lines.append([told, *cells])
    columns = ["R", "keys solved", *(f"S = {n}" for n in keys)]
    first = "here / as published / published" if second else "here / published"
    told = (
        "Keys solved: the S that half of the runs solve, with its 95 % interval, wide for the "
        "published ones, of one run at each S. Losses: medians over the seeds that were run; – is "
        "not run, or not among the published figures we compare with."
    )
    return f"{markdown_table([first, *columns], lines)}\n\n{told}"


def recording(rows: Sequence[Row]) -> str:
    """How many runs an experiment's rows are of, how long they took, and how many seeds."""
    if not rows:
        return "nothing is recorded yet"
    hours = sum(map(core_seconds, rows)) / 3600
    devices = ", ".join(sorted({row["provenance"]["device_name"] for row in rows}))
    took = f"{hours:z.1f}" if hours >= 0.1 else "less than 0.1"
    told = f"{len(rows)} runs in {took} core-hours on {devices}"
    of_memories = [
        {n: len(seeds) for n, seeds in losses.items()} for losses in best_losses(rows).values()
    ]
    keys = sorted({n for one in of_memories for n in one})
    enough = {n: [one.get(n, 0) >= MIN_SEEDS for one in of_memories] for n in keys}
    every = [n for n in keys if all(enough[n])]
    some = [n for n in keys if any(enough[n]) and n not in every]
    seeds = [
        f"{MIN_SEEDS} seeds or more of {whose} at S = {', '.join(map(str, found))}"
        for whose, found in (("every memory", every), ("some memories", some))
        if found
    ]
    rest = "fewer elsewhere" if len(every) + len(some) < len(keys) else ""
    return "; ".join(filter(None, [told, *seeds, rest]))
