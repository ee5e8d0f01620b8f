"""The measurements of claim 2."""

from dataclasses import replace

from replib.attention.lsh import LSHAttention
from replib.claims.common import LSH_COPY, VARIANTS
from replib.lab.record import Experiment
from replib.lab.run import CostJob, Job
from replib.lab.timing import WORKS, CostConfig, tokens_batch

# Those whose memory and time grow as N², the judged one first.
WEIGHTS_FORMED = (("softmax", "textbook"), ("linear", "plain"))

LSH_OPTIONS = (LSHAttention.Options(rounds=1), LSH_COPY, LSHAttention.Options(rounds=8))


def _scaling(scale: str) -> list[Job]:
    """Katharopoulos et al. 2020, Fig. 1: the batch shrinks as N grows, so that a batch has as many
    tokens at every N, one sequence at the longest. Beside it a batch of one at every N. What forms
    the N² weights takes seconds a call where it is long, and is timed by itself, with fewer
    repeats; LSH attention after all that, so that on two cores what is judged takes 8 minutes."""
    first, last, n_repeats, n_slow = {
        "smoke": (6, 8, 3, 3),
        "laptop": (6, 14, 5, 4),
        "paper": (9, 16, 11, 11),
    }[scale]
    lengths = [2**e for e in range(first, last + 1)]
    same_tokens = [(n, tokens_batch(2**last, n)) for n in lengths]
    one_sequence = [(n, 1) for n in lengths[:-1]]  # the longest is among the others

    def jobs(variants, points, work: str, n_repeats: int) -> list[Job]:
        return [
            CostJob(
                configs=tuple(
                    CostConfig(attention=a, **how, seq_len=n, batch_size=b, work=work)
                    for a, how in variants
                ),
                n_repeats=n_repeats,
            )
            for n, b in points
        ]

    found, others = [], [one for one in VARIANTS if one not in WEIGHTS_FORMED]
    for work, points, slow in (
        ("forward_backward", same_tokens, WEIGHTS_FORMED),
        ("forward_backward", one_sequence, WEIGHTS_FORMED[:1]),
        ("forward", same_tokens, WEIGHTS_FORMED),
    ):
        found += jobs([(a, {"kernel": k}) for a, k in others], points, work, n_repeats)
        found += jobs([(a, {"kernel": k}) for a, k in slow], points, work, n_slow)
    if scale == "smoke":
        return found
    lsh = [("lsh", {"options": replace(o, original=scale == "paper")}) for o in LSH_OPTIONS]
    return found + [job for work in WORKS for job in jobs(lsh, same_tokens, work, n_slow)]


EXPERIMENTS = (
    Experiment(
        name="scaling",
        title="Time and memory of attention against N, batch scaled inversely",
        jobs=_scaling,
        repeated=True,
    ),
)
