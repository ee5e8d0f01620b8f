"""Claim 6, where keys come back: the delta rule replaces the old value, a sum cannot."""

from replib.claims.claim import Claim, Statement
from replib.claims.update_rules import grid

CLAIM = Claim(
    name="update_rules",
    notebook="06_fast_weights",
    experiments=grid.EXPERIMENTS,
    statements=(
        Statement(
            name="update_rules",
            title="6 update rules",
            text="Where keys come back with new values, the delta rule solves what neither a sum "
            "nor the earlier rule of fast weight memories (fwm) does.",
            paper="Where keys come back, the delta rule replaces the old value; a sum cannot, and "
            "the earlier rule, fwm, does worse (Schlag et al. 2021, section 6.1.2).",
            experiments=("update_rules",),
            figure="update_rules",
        ),
    ),
)
