"""The measurements of Linformer: attention alone, a layer, and whole models."""

from replib.attention.base import Options
from replib.attention.linformer import LinformerAttention
from replib.claims.common import experiment
from replib.claims.linformer.stack import StackConfig
from replib.lab.run import CostJob, Job
from replib.lab.timing import WORKS, CostConfig, tokens_batch

JUDGED_K = 128  # of the paper's table 3, the smallest there
KS = (32, 64, JUDGED_K)  # of the Linformer work
HEADS = {"n_heads": 8, "head_dim": 64}  # of both works

Variant = tuple[str, Options | None, str | None]
LINFORMERS: tuple[Variant, ...] = tuple(
    ("linformer", LinformerAttention.Options(k=k), None) for k in KS
)
TEXTBOOK: Variant = ("softmax", None, "textbook")
FUSED: Variant = ("softmax", None, "fused")
LINEAR: tuple[Variant, ...] = tuple(("linear", None, kernel) for kernel in ("torch", "cpu", "cuda"))


def _points(first: int, last: int) -> list[tuple[int, int]]:
    """N and batch: as many tokens at each N, one sequence at the longest; and one sequence."""
    lengths = [2**e for e in range(first, last + 1)]
    return [(n, tokens_batch(2**last, n)) for n in lengths] + [(n, 1) for n in lengths[:-1]]


@experiment(
    "Linformer, linear and softmax attention, not causal: time and memory against N", repeated=True
)
def linformer(scale: str) -> list[Job]:
    """Attention alone, not causal, as the paper's table 3: tokens fixed, and a batch of one. The
    textbook softmax, which holds N² weights, is timed as far as it takes seconds, and by itself."""
    first, last, last_textbook, n_repeats = {
        "smoke": (5, 7, 7, 2),
        "laptop": (8, 14, 12, 7),
        "paper": (9, 16, 14, 15),
    }[scale]

    def job(n: int, batch_size: int, work: str, variants: tuple[Variant, ...]) -> Job:
        sizes = {"seq_len": n, "batch_size": batch_size, "work": work, "causal": False, **HEADS}
        configs = tuple(
            CostConfig(attention=a, options=o, kernel=kernel, **sizes) for a, o, kernel in variants
        )
        return CostJob(configs=configs, n_repeats=n_repeats)

    jobs = []
    for work in WORKS:
        for n, batch_size in _points(first, last):
            jobs.append(job(n, batch_size, work, (FUSED, *LINEAR, *LINFORMERS)))
            if n <= 2**last_textbook:
                jobs.append(job(n, batch_size, work, (TEXTBOOK,)))
    return jobs


@experiment("A layer, an encoder and an encoder-decoder around them, tokens fixed", repeated=True)
def linformer_stack(scale: str) -> list[Job]:
    """A layer, an encoder with its output layer, and an encoder-decoder, tokens fixed."""
    first, last, n_repeats, sizes = {
        "smoke": (5, 6, 2, {"n_layers": 1, "d_feedforward": 64, "vocab_size": 100}),
        "laptop": (8, 12, 5, {}),
        "paper": (8, 14, 11, {}),
    }[scale]
    variants = (FUSED, *LINEAR, *LINFORMERS)
    jobs: list[Job] = []
    for part in ("layer", "encoder", "translator"):
        for n in (2**e for e in range(first, last + 1)):
            configs = tuple(
                StackConfig(
                    attention=a,
                    options=o,
                    kernel=kernel,
                    seq_len=n,
                    batch_size=tokens_batch(2**last, n),
                    work="forward",
                    part=part,
                    **HEADS,
                    **sizes,
                )
                for a, o, kernel in variants
            )
            jobs.append(CostJob(configs=configs, n_repeats=n_repeats))
    return jobs


EXPERIMENTS = (linformer, linformer_stack)
