"""Why the 2022 replication found otherwise: do its conclusions stand after mending its defects?"""

from replib.claims import convergence, crossover
from replib.claims.autopsy import grid
from replib.claims.claim import Claim, Statement
from replib.published import published

ASKED = "Does it stand once its defects are mended?"


def _article_slowdown() -> str:
    table = published()["dm2022"]
    ratios, lengths = table["ratio_linear_softmax"], table["N"]
    told = ", ".join(f"{ratio:z.1f} at N = {n}" for ratio, n in zip(ratios, lengths, strict=True))
    return f"Times as long as softmax: {told} ({table['steps']} training steps each)."


def _article_losses() -> str:
    from replib.claims.autopsy.article_losses import article_ends

    ends = article_ends(published()["dm2022"]).values()
    linear = [one for one in ends if one.attention == "linear"]
    told = ", ".join(f"{one.text} at N = {one.seq_len}" for one in linear)
    return f"Final losses: {told} (nats a token, read off its figures; guessing costs 2.30)."


def _article_crossover() -> str:
    table = published()["dm2022"]
    last, crossing = table["N"][-1], table["fit"]["ceil"]
    return (
        f"A fit of four points up to N = {last} puts the crossover at N = {crossing}, "
        f"{crossing / last:z.0f} times beyond them."
    )


def _article_softmax() -> str:
    from replib.claims.autopsy.article_losses import article_ends

    end = article_ends(published()["dm2022"])["softmax", 8]
    return (
        f"{end.printed:zg} at N = {end.seq_len}, a sum over a batch of {end.batch} (inferred): "
        f"{end.text} nats a token."
    )


CLAIM = Claim(
    name="autopsy",
    notebook="05_replication_autopsy",
    question="Why did the 2022 replication find 3149?",
    experiments=grid.EXPERIMENTS,
    statements=(
        Statement(
            name="slowdown",
            title="5 does “8 to 24 times slower” stand?",
            text="Linear attention takes 8 to 24 times as long as softmax at N = 8 to 64 (computed "
            f"from Table 1). {ASKED}",
            paper=crossover.PAPER,
            article=_article_slowdown,
            refutes=True,
            experiments=("autopsy_time",),
            figure="autopsy_slowdown_64",
        ),
        Statement(
            name="convergence",
            title="5 does “no stable convergence” stand?",
            text="“A stable convergence does not occur” (result 1): linear attention does not "
            f"learn to copy. {ASKED}",
            paper=convergence.PAPER,
            article=_article_losses,
            article_more=convergence.article,
            refutes=True,
            experiments=("autopsy",),
            figure="autopsy_losses",
        ),
        Statement(
            name="crossover",
            title="5 does “faster from 3149 on” stand?",
            text="“It is only worthwhile to use Linear Attention from a sequence length of 3149” "
            f"(result 3). {ASKED}",
            paper=crossover.PAPER,
            article=_article_crossover,
            refutes=True,
            experiments=("autopsy_time", "step_time", "autopsy_longer"),
            figure="autopsy_prediction_quadratic",
        ),
        Statement(
            name="softmax_returns",
            text="“The original Transformer converges to a loss that range 10 to 18” (result 1). "
            "Does it come back at the article's own size?",
            article=_article_softmax,
            experiments=("autopsy_full",),
        ),
    ),
)
