"""Recorded rows changed at random, as other hands and other versions may leave them."""

import copy
import json
import random
from pathlib import Path

from replib import files

JUNK = (None, True, False, -1, 0, 1e-300, 1e300, 2**70, 10**18, 0.5, "", "text", "1", [], {}, [1])
JUNK += ([None], {"x": 1}, "<img src=x onerror=alert(1)>", "\ud800", "a\x1b[2J", "nan", -0.0, 3.7)


def parts(value, path=()):
    """The path of everything in a JSON value, of long lists a few members."""
    yield path
    if isinstance(value, dict):
        for name, item in value.items():
            yield from parts(item, (*path, name))
    elif isinstance(value, list):
        for i in {0, len(value) // 2, len(value) - 1} if value else ():
            yield from parts(value[i], (*path, i))


def mutant(row, rng: random.Random) -> str:
    """A row with one or two changes, as a line."""
    row = copy.deepcopy(row)
    for _ in range(rng.choice((1, 1, 2))):
        paths = [path for path in parts(row) if path]
        # A part of the row first, as most paths are of its curve.
        first = rng.choice(list(row))
        *before, last = rng.choice([path for path in paths if path[0] == first] or paths)
        holder = row
        for name in before:
            holder = holder[name]
        kind = rng.choice(("junk", "junk", "junk", "gone", "more", "scaled"))
        if kind == "junk":
            holder[last] = rng.choice(JUNK)
        elif kind == "gone":
            del holder[last]
        elif kind == "more" and isinstance(holder, dict):
            holder[f"{last}_of_a_newer_version"] = holder[last]
        elif kind == "more":
            holder.append(holder[last])
        elif isinstance(holder[last], int | float):
            holder[last] = holder[last] * rng.choice((-1, 0, 1e6, 1e-6, 1e30))
    return json.dumps(row)


def write_mutants(folder: Path, name: str, rng: random.Random, n: int, n_whole: int) -> None:
    """A data file of some recorded rows, most of them changed; of each a changed one follows it."""
    lines = (files.ROOT / "data" / f"{name}.jsonl").read_text().splitlines()
    whole = [json.loads(line) for line in rng.sample(lines, min(n_whole, len(lines)))]
    changed = [mutant(rng.choice(whole), rng) for _ in range(n)]
    each_once = dict.fromkeys([*map(json.dumps, whole), *changed])
    (folder / f"{name}.jsonl").write_text("\n".join(each_once) + "\n")
