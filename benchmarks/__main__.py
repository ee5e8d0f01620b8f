"""The command line: `python -m benchmarks` measures what is here against its peers, interleaved."""

from replib.lab import interrupts

if __name__ == "__main__":  # before all that takes a while to import
    interrupts.end_at_once()

import argparse
import sys
from functools import partial

from replib import files
from replib.lab import provenance, store


def main(argv: list[str] | None = None) -> int:
    """Measure, and append rows to `data/bench.jsonl`; returns the exit status, see
    `interrupts.run`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--device", default=None, help="auto, cpu or cuda (default: auto)")
    parser.add_argument("--quick", action="store_true", help="small sizes: about a minute")
    parser.add_argument("--only", nargs="+", default=[], metavar="GROUP", help="(default: all)")
    parser.add_argument("--no-save", action="store_true", help="append no rows to data/")
    arguments = parser.parse_args(argv)
    return interrupts.run(lambda: _measure(arguments))


def _measure(arguments) -> int:
    from benchmarks.comparison import EXPERIMENT
    from benchmarks.run import QUICK, bench_table, run_bench
    from replib.device import resolve_device
    from replib.lab.memory_use import tune_memory

    tune_memory()
    device, rows = resolve_device(arguments.device), []
    with interrupts.stopping() as stop:
        measured = run_bench(
            arguments.only,
            device=device,
            scale=QUICK if arguments.quick else None,
            stop=stop.is_set,
            say=partial(print, flush=True),
        )
        if not arguments.no_save and (why_not := files.writable(files.data_folder())):
            raise files.FileError(why_not)
        facts = provenance.provenance(str(device))
        print(f"{facts['device_name']}, {facts['threads']} threads, torch {facts['torch']}")
        for row in measured:
            rows.append(row)
            if not arguments.no_save:
                store.append(EXPERIMENT, row)
    print(f"\n{bench_table(rows)}")
    if stop.is_set():
        print("stopped: what was measured is kept", file=sys.stderr)
    return interrupts.status(stop.number) if stop.is_set() else 0


if __name__ == "__main__":
    interrupts.leave(main())
