"""What the figures of a benchmark's row may be, so that rows are checked as they are read."""

from typing import Annotated

from msgspec import Meta, Struct

from benchmarks.comparison import EXPERIMENT, Setting
from replib.lab import recorded, store
from replib.lab.provenance import clean_name
from replib.lab.run import register


class BenchFigure(Struct, forbid_unknown_fields=True):
    ours: str
    against: str
    unit: str
    detail: str | None
    value: float | None
    low: float | None
    high: float | None
    target: float | None
    met: bool | None

    def __post_init__(self):
        for text in (self.ours, self.against, self.unit, self.detail or ""):
            if text != clean_name(text):
                raise ValueError(f"a figure holds the text {text[:40]!r}")


class BenchFigures(Struct):
    figures: list[BenchFigure]
    operators: dict[str, dict[str, Annotated[float, Meta(ge=0)]]] | None = None


register(Setting)
recorded.SCHEMAS[EXPERIMENT] = BenchFigures, None


def recorded_rows() -> list[store.Row]:
    """The rows of `data/bench.jsonl`."""
    return recorded.read_rows(EXPERIMENT)
