"""Linformer: keys and values are summed into k slots, and attention costs N·k."""

from replib.claims.claim import Claim, Statement
from replib.claims.linformer import grid
from replib.published import published

WORK = "Linformer work"  # crybot/linformer


def paper() -> str:
    """What table 3 says of the smallest k."""
    table = published()["linformer_paper"]
    saved = table["time_saved"]
    first, last = list(saved)[0], list(saved)[-1]
    return (
        f"At k = {table['k'][0]}, inference is {saved[first][0]:z.3g} times faster at N = {first} "
        f"and {saved[last][0]:z.3g} times at {last} (table 3, {table['gpu']})."
    )


def work() -> str:
    """What the Linformer work measured of a whole encoder-decoder."""
    times = published()["linformer_project"]["perf_ms"]
    ends = [times["vanilla"][i] / times["lin_k128"][i] for i in (0, -1)]
    return (
        f"An encoder-decoder is {ends[0]:z.2f} times faster at N = 256, {ends[1]:z.2f} times at "
        "16384 (k = 128, 16384 tokens)."
    )


def of_slots_in_paper() -> str:
    """How what is saved falls with k."""
    table = published()["linformer_paper"]
    saved = table["time_saved"]["16384"]
    return (
        f"At N = 16384 inference is {saved[0]:z.3g} times faster than softmax with k = "
        f"{table['k'][0]} and {saved[-1]:z.3g} times with k = {table['k'][-1]} (table 3)."
    )


def of_slots() -> str:
    """What it measured of an encoder with its output layer."""
    times = published()["linformer_project"]["perf_ms"]
    few, many = (times[f"lin_k{k}_encoder_only"][-1] for k in (32, 128))
    return (
        f"An encoder takes {few:z.1f} ms with k = 32 and {many:z.1f} ms with 128 at N = 16384 "
        "(the file of the first says k: 64)."
    )


CLAIM = Claim(
    name="linformer",
    notebook="07_linformer",
    question="Can attention to k sums replace attention to N tokens?",
    experiments=grid.EXPERIMENTS,
    statements=(
        Statement(
            name="linformer",
            title="7 Linformer speed",
            text="Linformer attention (k = 128) is faster than softmax from N = 512 on, the more "
            "the longer.",
            paper=paper,
            article=work,
            article_by=WORK,
            experiments=("linformer",),
            figure="linformer_time",
        ),
        Statement(
            name="slots",
            text="How many slots k there are hardly changes the time.",
            paper=of_slots_in_paper,
            article=of_slots,
            article_by=WORK,
            experiments=("linformer", "linformer_stack"),
        ),
    ),
)
