"""How measured time and memory grow with N: curves of one batch rule, and their exponents."""

from collections.abc import Sequence

from replib.claims.common import Variant, order_of
from replib.lab.run import config_of, variant_of
from replib.lab.statistics import MIN_FIT_LENGTHS, Exponent, exponent_of_recordings
from replib.lab.store import Row
from replib.lab.verdict import by_device

TIME, MEMORY = "time", "memory"


def judged_rows(rows: Sequence[Row]) -> list[Row]:
    """Those of one work that are judged, of each device: of the first of its `curves`."""
    found = []
    for some in by_device(rows).values():
        found += next(iter(curves(some).values()), [])
    return found


def curves(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows by how the batch goes with N: constant tokens before a constant batch, and of each
    the one with the most lengths first. A point can be on two. One needs two lengths."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        n, batch_size = config_of(row).seq_len, config_of(row).batch_size
        for name in (f"{n * batch_size} tokens a batch", f"batch {batch_size}"):
            found.setdefault(name, []).append(row)
    n_lengths = {
        name: len({config_of(one).seq_len for one in some}) for name, some in found.items()
    }

    def rank(name: str) -> tuple:
        # Two points of two constant batches happen to have the same tokens: that is no curve.
        fits = n_lengths[name] >= MIN_FIT_LENGTHS
        return not fits, not name.endswith("tokens a batch"), -n_lengths[name]

    return {name: found[name] for name in sorted(found, key=rank) if n_lengths[name] >= 2}


def exponents(
    rows: Sequence[Row], work: str = "forward_backward"
) -> list[tuple[str, Variant, str, Exponent]]:
    """The growth exponents of time and memory a sequence: curve, mechanism, what, exponent. The
    first of `curves` comes first; of the others those with lengths enough for an interval."""
    found = []
    for i, (curve, some) in enumerate(curves([r for r in rows if _counts(r, work)]).items()):
        for variant in sorted({variant_of(row) for row in some}, key=order_of):
            for what in (TIME, MEMORY):
                lengths, recordings = _recordings(some, variant, what)
                if len(lengths) >= (MIN_FIT_LENGTHS if i else 2):
                    exponent = exponent_of_recordings(lengths, recordings)
                    found.append((curve, variant, what, exponent))
    return found


def _counts(row: Row, work: str) -> bool:
    return config_of(row).work == work and row["outcome"] == "ok"


def _recordings(
    rows: Sequence[Row], variant: Variant, what: str
) -> tuple[list[int], list[list[list[float]]]]:
    """The lengths that every recording of a mechanism has, shortest first, and for each recording
    the repeats a sequence at each length."""
    found: dict[int, dict[int, list[float]]] = {}
    for row in rows:
        if variant_of(row) == variant and (repeats := _repeats(row, what)):
            found.setdefault(row["seed"], {})[config_of(row).seq_len] = repeats
    if not found:
        return [], []
    most = max(map(len, found.values()))
    whole = [points for points in found.values() if len(points) == most]
    lengths = sorted(set.intersection(*(set(points) for points in whole)))
    return lengths, [[points[n] for n in lengths] for points in whole]


def _repeats(row: Row, what: str) -> list[float]:
    summary, batch_size = row["summary"], config_of(row).batch_size
    if what == MEMORY:
        memory = summary.get("memory_bytes_per_sample")
        return [memory] if memory else []
    return [time_ms / batch_size for time_ms in summary.get("time_ms_samples", ())]
