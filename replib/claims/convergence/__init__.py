"""Claim 1: a Transformer with linear attention learns to copy as one with softmax does."""

from replib.claims.claim import Claim, Statement
from replib.claims.convergence import grid
from replib.published import published

PAPER = (
    "Linear attention converges smoothly, below LSH attention and to the same loss as softmax "
    "(figure 2, N = 128; only curves are printed)."
)


ARTICLE = (
    "No stable convergence, on a copy task of its own, with a decoder that, by its code, could see "
    "its target."
)


def article() -> str:
    """What Do & Bergner 2022 found. Their figures show the loss summed over a batch; divided by
    the batch that we infer (softmax 8, linear 32) it is in nats a token."""
    from replib.claims.autopsy.article_losses import article_jumps

    losses = published()["dm2022"]["loss_scale"]["nats_per_token"]
    jumps = article_jumps(published()["dm2022"])
    told = {
        name: ", ".join(f"{loss:z.2f} at N = {n}" for n, loss in by_length.items())
        for name, by_length in losses.items()
    }
    return (
        "Final loss in nats a token (our reading of its figures, batch inferred), linear: "
        f"{told['linear']}; softmax: {told['softmax']}."
        f"{''.join(f' Among these {one.text}.' for one in jumps)} Guessing costs ln 10 = 2.30. "
        "That the decoder could see its target could explain the zeros."
    )


CLAIM = Claim(
    name="convergence",
    notebook="01_convergence",
    question="Does linear attention learn as softmax attention does?",
    experiments=grid.EXPERIMENTS,
    statements=(
        Statement(
            name="convergence",
            title="1 convergence",
            text="Linear attention learns to copy, smoothly and to the loss of softmax.",
            paper=PAPER,
            article=ARTICLE,
            article_more=article,
            experiments=("convergence",),
            figure="convergence_seeds",
        ),
        Statement(
            name="below_lsh",
            text="Linear attention ends at a lower loss than LSH attention of 4 rounds.",
            experiments=("convergence",),
        ),
    ),
)
