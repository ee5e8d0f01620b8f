"""Claim 1, judged on stored rows."""

from replib.claims.judging import below_lsh, convergence

VERDICTS = {
    "convergence": lambda rows: convergence(rows["convergence"]),
    "below_lsh": lambda rows: below_lsh(rows["convergence"]),
}
