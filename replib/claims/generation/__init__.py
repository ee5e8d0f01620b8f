"""Claim 4: a causal Transformer with linear attention is an RNN: every token costs the same."""

from replib.claims.claim import Claim, Statement
from replib.claims.generation import grid
from replib.published import published


def paper() -> str:
    """What the paper says of a token's cost, and of images against softmax with a cache."""
    return (
        f"Time and memory of a token are constant (section 3.4). Images come {_times('cache')} "
        "times faster than with cached softmax (our quotients)."
    )


def paper_more() -> str:
    """Where these figures are from, and those against softmax that recomputes."""
    cached = published()["katharopoulos2020"]["table4_stateful"]
    told = " and ".join(f"{cached[key]['stateful-softmax'][2]:zg}" for key in ("mnist", "cifar10"))
    return (
        f"Many images at once on a GPU come {_times('recompute')} times faster than with softmax "
        "that computes everything again for every token (tables 1 and 2). How much faster softmax "
        f"is that keeps its keys and values, {told} times, is in the supplement; how linear "
        "attention compares with that is not printed."
    )


def _times(over: str) -> str:
    from replib.claims.generation.measured import published_speedups
    from replib.lab.verdict import three_digits

    found = published_speedups(published()["katharopoulos2020"])
    return " and ".join(
        f"{three_digits(value)} ({image})"
        for image, one, where, value in found
        if (one, where) == (over, "GPU, many")
    )


CLAIM = Claim(
    name="generation",
    notebook="04_transformers_are_rnns",
    question="What does the next token cost?",
    experiments=grid.EXPERIMENTS,
    statements=(
        Statement(
            name="generation",
            title="4 generation",
            text="Linear attention generates faster than softmax, and at a constant cost a token.",
            paper=paper,
            paper_more=paper_more,
            article="Generation was not measured.",
            experiments=("generation",),
            figure="generation_tokens",
        ),
    ),
)
