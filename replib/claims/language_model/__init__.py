"""Language models: whether linear attention costs quality on text."""

import math

from replib.claims.claim import Claim, Statement
from replib.claims.language_model import grid
from replib.published import published

WORK = "language-model study"  # 395t/coding-assignment-week-7-eff-1


def study() -> str:
    """Its perplexities with linear attention."""
    found = published()["lm_study"]["ppl"]["Transformers are RNNs"]
    return (
        f"Perplexity with linear attention: WikiText-2 {found['wt2']:z.1f}, Penn Treebank "
        f"{found['ptb']:z.1f}, enwik8 {found['enwik8']:z.2f} a byte. Which attention: a small "
        "difference."
    )


def more() -> str:
    """What keeps them from being compared."""
    found = published()["lm_study"]
    bits = math.log2(found["ppl"]["Transformers are RNNs"]["enwik8"])
    return (
        f"On enwik8 these are {bits:z.2f} bits a byte. A yardstick: {found['yardstick']}. Its "
        "table has masked, subword and pretrained models too, which compare with none of these."
    )


def of_layers() -> str:
    """Its axis of depth."""
    steps = ", ".join(map(str, published()["lm_study"]["findings"]["layers"]))
    return f"Of {steps} layers the deeper had the lower perplexity (figures without numbers)."


def of_batch() -> str:
    """Its axis of the batch."""
    best = published()["lm_study"]["findings"]["best_batch"]
    return f"A batch of {best} was best, of 4, 16 and 64; on small corpora 64 was as good."


def of_length() -> str:
    """Its axis of length."""
    told = published()["lm_study"]["findings"]["seq_len"]
    return f"{told[:1].upper()}{told[1:]}."


def _statement(name: str, text: str, article="Not studied.", **options) -> Statement:
    options = {"paper": "Not studied.", "experiments": ("text_axes",)} | options
    return Statement(name=name, text=text, article=article, article_by=WORK, **options)


CLAIM = Claim(
    name="language_model",
    notebook="08_language_model",
    question="Does linear attention cost quality on text?",
    address="language",
    experiments=grid.EXPERIMENTS,
    statements=(
        _statement(
            "language_model",
            "Linear attention models text as well as softmax attention.",
            study,
            title="8 language model",
            article_more=more,
            experiments=("language_model", "text_axes"),
            figure="text_perplexity",
        ),
        _statement("layers", "More layers model text better.", of_layers),
        _statement(
            "batch", "A batch of 16 is better than one of 4, and as good as one of 64.", of_batch
        ),
        _statement("length", "Shorter segments model a small text better.", of_length),
        _statement("heads", "More heads model text better.", "A heading, no numbers."),
        _statement(
            "text_defects",
            "What the study did otherwise raises its perplexity.",
            "Positions by the row of a batch, and an embedding dropout of 0.5, by its code.",
            experiments=("text_defects",),
        ),
    ),
)
