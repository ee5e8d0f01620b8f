"""Where linear attention overtakes softmax in measured rows, for each implementation of the two."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from replib.claims.common import Variant, order_of
from replib.lab.run import config_of, variant_of
from replib.lab.statistics import Crossover, crossover
from replib.lab.store import Row
from replib.lab.verdict import by_device


@dataclass(frozen=True, kw_only=True)
class Crossing:
    """The N from which linear attention in one implementation is faster than softmax in another
    (`baseline`), at one batch size. `row` is one of its rows, to tell where it was measured."""

    implementation: str | None
    baseline: str
    batch_size: int
    found: Crossover
    row: Row

    @property
    def setting(self) -> str:
        """What it is held against."""
        return f"softmax {self.baseline}, batch {self.batch_size}"


def crossings(rows: Sequence[Row], work: str = "forward_backward") -> list[Crossing]:
    """The measured crossover of each implementation of linear attention, for each batch size,
    device and softmax; the largest batch first, and the compiled implementations last. One needs
    two lengths at which both ran."""
    rows = [row for row in rows if config_of(row).work == work and row["outcome"] == "ok"]
    found = []
    for some in by_device(rows).values():
        timed: dict[int, dict[Variant, dict[int, Row]]] = {}
        for row in some:
            batch = timed.setdefault(config_of(row).batch_size, {})
            batch.setdefault(variant_of(row), {})[config_of(row).seq_len] = row
        for batch_size in sorted(timed, reverse=True):
            found += _crossings(timed[batch_size], batch_size)
    return found


def _crossings(timed: dict[Variant, dict[int, Row]], batch_size: int) -> list[Crossing]:
    found = []
    for baseline in ("textbook", "fused"):
        softmax = timed.get(("softmax", baseline), {})
        for variant in sorted((one for one in timed if one[0] == "linear"), key=order_of):
            linear = timed[variant]
            lengths = sorted(softmax.keys() & linear.keys())
            if len(lengths) < 2:
                continue
            times = (
                tuple(tuple(rows[n]["summary"]["time_ms_samples"]) for n in lengths)
                for rows in (softmax, linear)
            )
            crossing = Crossing(
                implementation=variant[1],
                baseline=baseline,
                batch_size=batch_size,
                found=_crossover(tuple(lengths), *times),
                row=linear[lengths[-1]],
            )
            found.append(crossing)
    return found


# A page asks for the same ones several times, and again while a run goes on beside it.
_crossover = lru_cache(maxsize=1000)(crossover)


def by_setting(found: Iterable[Crossing]) -> dict[tuple[str, str], dict[str, Crossover]]:
    """The crossovers of a device and setting, by implementation, in the order in which these
    improve."""
    settings: dict[tuple[str, str], dict[str, Crossover]] = {}
    for one in found:
        of_setting = settings.setdefault((one.row["provenance"]["device_name"], one.setting), {})
        of_setting[one.implementation or "fastest"] = one.found
    return settings


def moved(found: Mapping[str, Crossover]) -> bool | None:
    """Whether the last implementation's crossover lies wholly below that of the first; None where
    their intervals meet."""
    start, *_, end = *found.values(), *found.values()
    return True if end.high < start.low else False if end.low > start.high else None
