"""Claim 4: a causal Transformer with linear attention is an RNN: every token costs the same."""

from replib.claims.claim import Claim, Statement
from replib.claims.generation import grid

PAPER = (
    "Generating needs constant time and memory a token (section 3.4). Images come 317 (MNIST) "
    "and 4462 (CIFAR-10) times faster than with softmax, on a GPU. Softmax that keeps its keys "
    "and values is 16.8 and 80 times as fast as without (supplement), which leaves 18.9 and "
    "55.8 (our quotients)."
)
ARTICLE = "Generation was not measured."
CLAIM = Claim(
    name="generation",
    notebook="04_transformers_are_rnns",
    experiments=grid.EXPERIMENTS,
    statements=(
        Statement(
            name="generation",
            title="4 generation",
            text="Linear attention generates at a constant cost a token, and faster than softmax.",
            paper=PAPER,
            article=ARTICLE,
            experiments=("generation",),
            figure="generation_tokens",
        ),
        Statement(
            name="constant_cost",
            text="With linear attention a token costs the same at every position; with softmax it "
            "does not.",
            paper=PAPER,
            article=ARTICLE,
            experiments=("generation",),
        ),
        Statement(
            name="faster_generation",
            text="Linear attention generates faster than softmax, even where softmax has a cache.",
            experiments=("generation",),
        ),
    ),
)
