"""Translation with Linformer, linear and softmax attention."""

from replib.claims.claim import Claim, Statement
from replib.claims.linformer import WORK
from replib.claims.translation import grid
from replib.published import published


def work() -> str:
    """Its perplexities, and BLEU as it should be computed."""
    table = published()["linformer_project"]["table"]
    told = ", ".join(
        f"{name} {row['ppl']:z.2f} and {row['bleu_recomputed']:z.1f}" for name, row in table.items()
    )
    return f"WMT14, perplexity and BLEU of the whole test: {told}."


def more() -> str:
    """BLEU as it was printed, and by the length of sentences."""
    project = published()["linformer_project"]
    printed = ", ".join(
        f"{name} {row['bleu_published']:z.2f}" for name, row in project["table"].items()
    )
    groups = project["bleu_by_source_words"]
    ends = "; ".join(
        f"{name} {groups[name][0]:z.1f} to {groups[name][-1]:z.1f}" for name in project["table"]
    )
    return (
        f"Printed was BLEU of the first sentence against all references: {printed}. Recomputed by "
        f"the words of a source, from {groups['bins'][0]} to {groups['bins'][-1]}: {ends}."
    )


CLAIM = Claim(
    name="translation",
    notebook="07_linformer",
    address="linformer",
    experiments=grid.EXPERIMENTS,
    statements=(
        Statement(
            name="translation",
            title="7 Linformer translation",
            text="A Transformer whose encoder is a Linformer's translates as well as with softmax "
            "attention.",
            paper="Not studied: pretraining and classification alone, within 0.5 points of the "
            "Transformer on average (table 2).",
            article=work,
            article_more=more,
            article_by=WORK,
            experiments=("translation",),
            figure="translation_bleu",
        ),
        Statement(
            name="number_words",
            title="7 number words",
            text="A Linformer translates number and date words as well, to the letter.",
            paper="Not studied.",
            article_by=WORK,
            experiments=("number_words",),
            figure="number_words",
        ),
    ),
)
