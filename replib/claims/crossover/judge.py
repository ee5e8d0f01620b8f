"""Claim 3, judged on stored rows."""

from replib.claims.judging import implementations, speed_crossover

VERDICTS = {
    "crossover": lambda rows: speed_crossover(rows["crossover"]),
    "implementations": lambda rows: implementations(rows["crossover"]),
}
