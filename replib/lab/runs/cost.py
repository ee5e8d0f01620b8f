"""Costs that are measured together, and a row a point."""

from collections.abc import Iterator
from datetime import UTC, datetime

from replib.device import resolve_device
from replib.lab import store
from replib.lab.run import CostJob, Glimpse, Where, kind_of, versions_of
from replib.lab.runs.generation import GenerationConfig, measure_generation
from replib.lab.timing import Cost, measure_cost


def execute(job: CostJob, where: Where) -> Iterator[store.Row]:
    """Measure the points together. A stream is told of on its way, as if it were stopped now."""
    started = datetime.now(UTC)

    def row_of(cost: Cost) -> store.Row:
        return store.make_row(
            where.experiment,
            where.scale,
            cost.config,
            where.recording,
            cost.outcome,
            cost.summary(),
            curve=getattr(cost, "curve", None),
            detail=cost.detail,
            device=str(resolve_device(where.device)),
            kind=kind_of(cost.config, cost=True),
            versions=versions_of(cost.config, cost=True),
            started=started,
        )

    def partly(cost: Cost) -> None:
        done, of = cost.curve["position"][-1], cost.config.seq_len
        text = f"{cost.config.way}: {done:,} of {of:,} tokens"
        where.watch(Glimpse(done / of, text, lambda: [row_of(cost)]))

    first = job.configs[0]
    length = getattr(first, "task", first).seq_len
    where.watch(Glimpse(0.0, f"measuring N = {length}", list))
    measure, options = measure_cost, {}
    if first.kind == GenerationConfig.kind:
        measure, options = measure_generation, {"on_partial": partly}
    for cost in measure(
        job.configs,
        n_repeats=job.n_repeats,
        device=where.device,
        seed=where.recording,
        stop=where.stop,
        max_seconds_per_point=where.max_seconds_per_point,
        **options,
    ):
        yield row_of(cost)
