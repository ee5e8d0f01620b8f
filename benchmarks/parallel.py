"""The command line: `python -m benchmarks.parallel` trains the copy task on one sequence that lies
over two processes, and on one process beside it, and measures peak memory and time of each."""

import argparse
import json
from dataclasses import asdict, replace

from replib import files
from replib.lab import provenance
from replib.lab.over_ranks import (
    RECORDED,
    AttentionOverRanks,
    CopyOverRanks,
    measured_link,
    of_this_rank,
    part_times,
    recorded_table,
)
from replib.parallel import WAYS, run_processes

TIMEOUT_S = 3600.0
DOCUMENT = files.ROOT / "docs" / "parallel.md"
BEGIN, END = "<!-- measured: begin -->\n", "<!-- measured: end -->\n"


def main(argv: list[str] | None = None) -> None:
    """Measure, print a table, and with --save write it to the document and the data."""
    default = CopyOverRanks()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.parallel", description=__doc__)
    parser.add_argument("--attention", default=default.attention)
    parser.add_argument("--seq-len", type=int, default=default.seq_len)
    parser.add_argument("--steps", type=int, default=default.n_steps)
    parser.add_argument("--save", action="store_true", help="write data/ and docs/parallel.md")
    arguments = parser.parse_args(argv)
    run = CopyOverRanks(
        attention=arguments.attention, seq_len=arguments.seq_len, n_steps=arguments.steps
    )
    measured = measure(run)
    print(recorded_table(measured))
    if arguments.save:
        RECORDED.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
        _write(recorded_table(measured))


def measure(run: CopyOverRanks, say=print) -> dict:
    """What each process found, of one process with half of the sequence and with all of it, by one
    thread and by two, and of two processes with all of it, each by one thread."""
    half = replace(run, seq_len=run.seq_len // 2)
    cases = [(half, None, 1, 1), (run, None, 1, 1), (run, None, 1, 2)]
    cases += [(run, way, 2, 1) for way in WAYS]
    runs = []
    for config, way, size, threads in cases:
        options = {"threads": threads, "timeout_s": TIMEOUT_S}
        ranks = run_processes(of_this_rank, size, config, way, **options)
        case = {"seq_len": config.seq_len, "way": way, "threads": threads}
        runs.append(case | {"ranks": [asdict(one) for one in ranks]})
        say(json.dumps(runs[-1]))
    facts = provenance.provenance("cpu")
    kept = {name: facts[name] for name in ("device_name", "torch", "commit") if name in facts}
    return {
        "run": asdict(run),
        "state_bytes": run.layer.state_bytes,
        "effect_bytes": run.layer.effect_bytes,
        "link": asdict(measured_link()),
        "parts": _parts(),
        "runs": runs,
        "provenance": kept,
    }


def _parts() -> dict[str, dict]:
    """What a token of four parts takes by each mechanism, in a process of its own."""
    found = {}
    for name in ("linear", "delta"):
        run = AttentionOverRanks(attention=name)
        (times,) = run_processes(part_times, 1, run, 4, timeout_s=TIMEOUT_S)
        found[name] = asdict(run) | asdict(times)
    return found


def _write(table: str) -> None:
    """Put the table between its marks in the document."""
    text = DOCUMENT.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    DOCUMENT.write_text(before + BEGIN + table + "\n" + END + rest.split(END)[1], encoding="utf-8")


if __name__ == "__main__":
    main()
