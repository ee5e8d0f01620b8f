"""Claim 3, judged on stored rows."""

from replib.claims.judging import implementations, speed_crossover, work_of

VERDICTS = {
    "crossover": lambda rows: speed_crossover(rows["crossover"], work=work_of(rows["crossover"])),
    "implementations": lambda rows: implementations(
        rows["crossover"], work=work_of(rows["crossover"])
    ),
}
