"""Charts of claim 1."""

from collections.abc import Iterator

from replib.claims.claim import Figure, Rows
from replib.lab.run import config_of
from replib.pages import curves, tidy


def figures(rows: Rows) -> Iterator[tuple[str, Figure]]:
    """The learning curves of each length, and where each seed ended."""
    recorded = tidy.training_curves(rows["convergence"])
    for seq_len in sorted(recorded["seq_len"].unique()):
        chart = curves.learning_curves(
            recorded.filter(recorded["seq_len"] == seq_len),
            title=f"Learning to copy, N = {seq_len}",
        )
        some = [row for row in rows["convergence"] if config_of(row).task.seq_len == seq_len]
        yield (
            f"convergence_{seq_len}",
            Figure(chart=chart, experiment="convergence", rows=some),
        )
    for name, experiment, title in (
        ("convergence_seeds", "convergence", "Where each seed ended"),
        ("sequence_copy", "sequence_copy", "The 2022 replication's task: where each seed ended"),
    ):
        some = rows[experiment]
        chart = curves.seeds_chart(tidy.training_summaries(some), title=title)
        yield name, Figure(chart=chart, experiment=experiment, rows=some)
