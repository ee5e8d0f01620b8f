"""Jobs small enough to run in a test."""

from replib.claims.common import laptop_copy
from replib.lab.record import Experiment
from replib.lab.run import CostJob, TrainingJob
from replib.lab.timing import CostConfig


def tiny(seed=0, n_steps=20, attention="linear", **changes):
    options = {"eval_every": 5, "eval_batches": 1, "batch_size": 4}
    return TrainingJob(config=laptop_copy(attention, 16, n_steps, **options | changes), seed=seed)


def experiment_of(*jobs):
    return Experiment(name="tiny", title="for tests", jobs=lambda scale: list(jobs))


EVERYWHERE = (("softmax", "textbook"), ("softmax", "fused"), ("linear", "torch"))


def cost_job(n=16, variants=EVERYWHERE):
    configs = [
        CostConfig(attention=a, kernel=k, seq_len=n, n_heads=1, head_dim=4) for a, k in variants
    ]
    return CostJob(configs=tuple(configs), n_repeats=2)


def is_whole(job):
    return getattr(job.configs[0], "span", None) == "sequence"


def variants_of(job):
    return [config.variant for config in job.configs]
