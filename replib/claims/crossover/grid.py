"""The measurements of claim 3, and of the 2022 replication's training step."""

from replib.claims.common import VARIANTS, experiment, laptop_model, replication_model
from replib.lab.run import CostJob, Job
from replib.lab.timing import CostConfig
from replib.tasks.copy import SequenceCopy
from replib.training import TrainingConfig


@experiment("Time of attention against N at a fixed batch")
def crossover(scale: str) -> list[Job]:
    """Every variant at a fixed batch, from lengths where softmax must win."""
    first, last, batches, n_repeats = {
        "smoke": (4, 7, (1,), 3),
        "laptop": (3, 11, (1, 8), 15),
        "paper": (5, 14, (1, 8), 21),
    }[scale]
    return [
        CostJob(
            configs=tuple(
                CostConfig(attention=a, kernel=k, seq_len=2**e, batch_size=batch, work=work)
                for a, k in VARIANTS
            ),
            n_repeats=n_repeats,
        )
        for batch in batches
        for work in ("forward", "forward_backward")
        for e in range(first, last + 1)
    ]


@experiment("Time of one training step of the 2022 replication's model against N")
def step_time(scale: str) -> list[Job]:
    """One training step of the 2022 replication's model, at the lengths of its Table 1."""
    lengths = {
        "smoke": (8, 16),
        "laptop": (8, 16, 32, 64, 128, 256),
        "paper": (8, 16, 32, 64, 128, 256, 512, 1024, 2048),
    }[scale]
    model = laptop_model if scale == "smoke" else replication_model
    return [
        CostJob(
            configs=tuple(
                TrainingConfig(
                    task=SequenceCopy(seq_len=n),
                    model=model(a, kernel=k),
                    batch_size=8,
                    n_steps=3000,
                )
                for a, k in VARIANTS
            ),
            n_repeats=3 if scale == "smoke" else 11,
        )
        for n in lengths
    ]


EXPERIMENTS = (crossover, step_time)
