"""Setting 2 of Schlag et al. 2021: keys come back with new values."""

from replib.claims.capacity.grid import dpfp, favor, is_slow, retrieval_config, retrieval_jobs
from replib.claims.common import experiment
from replib.fast_weights import MemoryConfig
from replib.lab.run import Job, RetrievalJob

UPDATE_RULE_MEMORIES = (
    dpfp(1),
    MemoryConfig(attention="linear", update_rule="delta"),
    dpfp(1, "delta"),
    dpfp(2, "delta"),
    favor(128, "delta"),
    dpfp(1, "fwm"),
    MemoryConfig(attention="tanh", update_rule="fwm"),
)


@experiment("Associative retrieval, keys with new values: loss against the number of keys")
def update_rules(scale: str) -> list[Job]:
    """Setting 2 of Schlag et al. 2021, section 6.1.2: keys come back with new values. The memories
    that solve any S, and the sum, are also evaluated as the published runs are; at S = 80 and 120
    too, between which and 100 the last S solved may be."""
    jobs = retrieval_jobs(scale, UPDATE_RULE_MEMORIES, 200, with_replacement=True)
    if scale == "smoke":
        return jobs
    alike = [
        RetrievalJob(
            config=retrieval_config(n_keys, m, with_replacement=True, eval_half_length=True),
            seeds=(0, 1, 2),
        )
        for n_keys in (20, 60, 100, 200, 80, 120)
        for m in UPDATE_RULE_MEMORIES[:4]
    ]
    return sorted(jobs + alike, key=lambda job: is_slow(job.config.model))


EXPERIMENTS = (update_rules,)
