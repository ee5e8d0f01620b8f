"""Where linear attention overtakes softmax in measured rows, for each implementation of the two."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from replib.claims.common import Variant, crossing, order_of
from replib.lab.run import config_of, variant_of
from replib.lab.statistics import Crossover
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
            found += _of_batch(timed[batch_size], batch_size)
    return found


def _of_batch(timed: dict[Variant, dict[int, Row]], batch_size: int) -> Iterator[Crossing]:
    samples = {
        variant: {n: row["summary"]["time_ms_samples"] for n, row in rows.items()}
        for variant, rows in timed.items()
    }
    for baseline in ("textbook", "fused"):
        softmax = samples.get(("softmax", baseline), {})
        for variant in sorted((one for one in timed if one[0] == "linear"), key=order_of):
            if found := crossing(softmax, samples[variant]):
                yield Crossing(
                    implementation=variant[1],
                    baseline=baseline,
                    batch_size=batch_size,
                    found=found,
                    row=next(iter(timed[variant].values())),
                )


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
