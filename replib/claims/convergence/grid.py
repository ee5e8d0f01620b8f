"""The runs of claim 1."""

from dataclasses import replace

from replib.claims.common import (
    BOTH,
    LSH_COPY,
    experiment,
    laptop_copy,
    laptop_model,
    paper_model,
    replication_model,
    seed_jobs,
)
from replib.lab.run import Job
from replib.tasks.copy import SequenceCopy
from replib.training import TrainingConfig


@experiment("Causal copy task: loss and accuracy over training")
def convergence(scale: str) -> list[Job]:
    """Katharopoulos et al. 2020, Fig. 2; LSH attention after those that are judged."""
    if scale == "paper":
        configs = [TrainingConfig(model=paper_model(a)) for a in BOTH]
        lsh = TrainingConfig(model=paper_model("lsh", options=replace(LSH_COPY, original=True)))
        return seed_jobs(configs, 5) + seed_jobs([lsh], 3)
    if scale == "smoke":
        return seed_jobs([laptop_copy(a, 16, 60) for a in BOTH], 1)
    steps = {16: 1000, 32: 1500, 64: 3000, 128: 3000}
    model = laptop_model("lsh", options=LSH_COPY)
    lsh = [laptop_copy("lsh", n, s, model=model) for n, s in steps.items()]
    judged = [laptop_copy(a, n, s) for n, s in steps.items() for a in BOTH]
    short, long = lsh[:2], lsh[2:]  # a long one takes up to half an hour
    return seed_jobs(judged, 5) + seed_jobs(short, 3) + seed_jobs(long, 1)


@experiment("Sequence-to-sequence copy of the 2022 replication: loss over training")
def sequence_copy(scale: str) -> list[Job]:
    """The 2022 replication's task: full-size model at the paper scale, a small one below."""
    lengths = (8, 16, 32, 64)
    if scale == "paper":
        configs = [
            TrainingConfig(
                task=SequenceCopy(seq_len=n),
                model=replication_model(a),
                batch_size=8,
                n_steps=3000,
                lr_drop_step=3000,
                eval_every=25,
            )
            for n in lengths
            for a in BOTH
        ]
        return seed_jobs(configs, 5)
    n_steps = 60 if scale == "smoke" else 3000
    configs = [
        laptop_copy(a, n, n_steps, task=SequenceCopy(seq_len=n), batch_size=8, lr=2e-3)
        for n in (lengths[:1] if scale == "smoke" else lengths)
        for a in BOTH
    ]
    return seed_jobs(configs, 1 if scale == "smoke" else 3)


EXPERIMENTS = (convergence, sequence_copy)
