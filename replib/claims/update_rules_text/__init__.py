"""Sum and delta rule on text, and what a carried state remembers."""

from replib.claims.claim import Claim, Statement
from replib.claims.update_rules_text import grid
from replib.published import published


def rules() -> str:
    """Its perplexities on WikiText-103."""
    table = published()["fastweights_paper"]["table2_wt103_ppl"]
    told = ", ".join(
        f"{name} {table[row][-1]:z.1f}"
        for name, row in (
            ("Transformer", "transformer"),
            ("sum", "linear sum"),
            ("delta", "linear delta"),
        )
    )
    return f"WikiText-103, test perplexity (Schlag et al. 2021, table 2, medium): {told}."


def rules_more() -> str:
    """What positions and normalisation change of the delta rule."""
    table = published()["fastweights_paper"]["table3_delta_medium"]
    names = {"pos": "positions", "nopos": "no positions", "norm": "normalised", "nonorm": "not"}
    told = "; ".join(
        f"{', '.join(names[part] for part in name.split('+'))}: {row[1]:z.1f}"
        for name, row in table.items()
        if name != "columns"
    )
    return f"The delta rule's test perplexity (table 3): {told}."


def carried() -> str:
    """Its perplexities where the state is carried without end."""
    table = published()["fastweights_paper"]["table4_no_truncation"]
    return (
        "Without truncation, test perplexity (Schlag et al. 2021, table 4): sum "
        f"{table['linear'][-1]}, delta {table['delta'][-1]:z.1f}."
    )


def carried_more() -> str:
    """Those of Transformer-XL by the size of its memory."""
    rows = published()["fastweights_paper"]["table4_no_truncation"]["txl"]
    told = ", ".join(f"{row[-1]:z.1f} with {row[0]:z.2f} million numbers" for row in rows)
    return f"Transformer-XL's memory in its place: {told}; the delta rule's state has 0.13 million."


CLAIM = Claim(
    name="update_rules_text",
    notebook="08_language_model",
    experiments=grid.EXPERIMENTS,
    statements=(
        Statement(
            name="update_rules_text",
            title="8 update rules on text",
            text="The delta rule models text better than a sum.",
            paper=rules,
            paper_more=rules_more,
            article="",
            experiments=("update_rules_text",),
            figure="text_rules",
        ),
        Statement(
            name="text_carry",
            text="Carried without end, a sum's state fails and the delta rule's does not.",
            paper=carried,
            paper_more=carried_more,
            article="",
            experiments=("text_carry",),
            figure="text_carry",
        ),
    ),
)
