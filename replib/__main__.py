"""The command line: `python -m replib list | record | gpu | merge | serve | report | doctor`."""

from replib.lab import interrupts

if __name__ == "__main__":  # before all that takes a while to import
    interrupts.end_at_once()

import argparse
import itertools
import secrets
import sys
from functools import partial
from time import monotonic

from replib import files

# A command imports what it needs: torch takes seconds, which --help does not wait for.

FIRST_PORT = 2718
MOST_SECONDS = 4e6  # of a timer
CLUSTER_GRACE_S = 15.0  # for the workers to write their checkpoints
NEW_TOKEN = ""


def main(argv: list[str] | None = None, began: float | None = None) -> int:
    """Run a command, whose time counts from `began` (of `monotonic`; now if left out); returns the
    exit status, see `interrupts.run`."""
    began, parser = began or monotonic(), _parser()
    arguments, rest = parser.parse_known_args(argv)
    if rest and arguments.run is not _report:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    arguments.rest, arguments.began = rest, began
    return interrupts.run(lambda: arguments.run(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m replib", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name, run, text):
        sub = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.set_defaults(run=run)
        return sub

    command("list", _list, "list the experiments, their scales and what is recorded of each")
    sub = command("record", _record, "run an experiment and append its rows to data/")
    sub.add_argument("experiment", help="one that `list` names, or all")
    sub.add_argument("--scale", default="smoke", help="smoke, laptop or paper (default: smoke)")
    sub.add_argument("--device", default=None, help="auto, cpu or cuda (default: auto)")
    sub.add_argument("--threads", type=int, default=None, help="CPU threads (default: all)")
    text = "time again what has fewer than N samples (where there is time) or had no memory"
    sub.add_argument("--retime-below", type=int, default=0, metavar="N", help=text)
    text = "number of a recording of scaling (default: 0); make the next at another time"
    sub.add_argument("--recording", type=int, default=0, metavar="K", help=text)
    text = "end in so long, the most valuable runs first; the same command goes on"
    sub.add_argument("--minutes", type=float, default=None, metavar="M", help=text)
    text = "run on a Dask cluster: local:4, or a scheduler such as tcp://host:8786"
    sub.add_argument("--on", default=None, metavar="CLUSTER", help=text)
    text = "each worker has its machine to itself, so that points may be timed on it"
    sub.add_argument("--exclusive", action="store_true", help=text)
    sub = command(
        "gpu", _gpu, "visit a CUDA machine: check, measure, record; one folder to bring home"
    )
    sub.add_argument("--minutes", type=float, default=9.0, metavar="M", help="(default: 9)")
    sub.add_argument("--device", default="cuda", help="cuda, or cpu for a trial (default: cuda)")
    sub.add_argument("--scale", default="paper", help="of the rows (default: paper)")
    text = "folder to write to (default: visit_..., after the device and the minute)"
    sub.add_argument("--to", default=None, metavar="FOLDER", help=text)
    text = "add the rows and kept models of a folder that was brought home to data/"
    command("merge", _merge, text).add_argument("folder", help="one that `gpu` wrote")
    sub = command("report", _report, "write figures/ and figures/report/")
    sub.add_argument("--pdf", action="store_true", help="print the pages too, by Chromium")
    sub.usage = f"{parser.prog} report [--pdf] [NOTEBOOK ...] [--PARAMETER VALUE ...]"
    sub.epilog = (
        "Named notebooks alone are written, such as 03_speed_crossover; with parameters of their "
        "controls, such as --seq-len 4096 --batch 2, each shows a run with them."
    )
    sub = command("serve", _serve, "serve the notebooks at http://127.0.0.1:2718")
    sub.add_argument("--port", type=int, default=FIRST_PORT, help="(default: %(default)s)")
    sub.add_argument("--no-browser", action="store_true", help="only print the address")
    text = "a name or address of this machine; with 0.0.0.0 others reach it (default: %(default)s)"
    sub.add_argument("--host", default="127.0.0.1", help=text)
    text = "what a browser brings along once, wanted where others reach it; made up if left out"
    sub.add_argument("--token", nargs="?", const=NEW_TOKEN, help=text)
    sub.epilog = (
        "REPLIB_CLUSTER=local:2, or a scheduler such as tcp://host:8786, sends live trainings to a "
        "Dask cluster (docs/cluster.md)."
    )
    command("doctor", _doctor, "say what this machine has and what is missing")
    return parser


def _list(arguments) -> int:
    from replib.claims import EXPERIMENTS
    from replib.lab import recorded
    from replib.lab.record import SCALES, core_seconds

    for experiment in EXPERIMENTS.values():
        print(f"{experiment.name:14} {experiment.title}")
        try:
            found = recorded.read_rows(experiment.name)
        except files.FileError as error:
            print(f"{'':14} {error}")
            continue
        counts = [f"{s}: {sum(row['scale'] == s for row in found)} rows" for s in SCALES]
        hours = sum(map(core_seconds, found)) / 3600
        span = f"{hours:.1f} core-hours" if hours >= 1 else f"{60 * hours:.0f} core-minutes"
        took = f"; trained for {span}" if hours else ""
        n_old = len(recorded.old_rows(experiment.name))
        old = f"; {n_old} rows of earlier versions" if n_old else ""
        print(f"{'':14} recorded: {', '.join(counts)}{took}{old}")
    return 0


def _record(arguments) -> int:
    import torch

    from replib.claims import EXPERIMENTS, experiment_named
    from replib.lab.memory_use import tune_memory
    from replib.lab.record import check
    from replib.lab.run import line_of

    names = list(EXPERIMENTS) if arguments.experiment == "all" else [arguments.experiment]
    experiments = [experiment_named(name) for name in names]
    if arguments.threads is not None:
        if arguments.threads < 1:
            raise ValueError(f"--threads {arguments.threads}: use at least 1")
        torch.set_num_threads(arguments.threads)
    ends = _ends(arguments)
    if arguments.exclusive and arguments.on is None:
        raise ValueError("--exclusive is said of the workers of a cluster: give --on too")
    for experiment in experiments:
        check(experiment, arguments.scale, arguments.recording)
    tune_memory()
    n_rows, troubles = 0, []
    with interrupts.stopping(ends, CLUSTER_GRACE_S if arguments.on else None) as stop:
        recorded = _recorded_on if arguments.on else _recorded_here
        for row in recorded(arguments, experiments, stop, ends, troubles.append):
            print(line_of(row), flush=True)
            n_rows += 1
    for trouble in troubles:
        interrupts.say(f"failed: {trouble}")
    if stop.is_set():
        interrupts.say(interrupts.CONTINUES)
        return interrupts.status(stop.number) if stop.number else 0
    if not n_rows and not troubles:
        print(
            "nothing to do: what is not left out of this scale is recorded for the present code, "
            "or another process is at it"
        )
    return 1 if troubles else 0


def _ends(arguments) -> float | None:
    """When a command's time is up, of `monotonic`; None is never.

    Raises:
        ValueError: the time is not above 0.
    """
    minutes = arguments.minutes
    if minutes is not None and not minutes > 0:
        raise ValueError(f"--minutes {minutes}: use above 0")
    return None if minutes is None else arguments.began + min(60 * minutes, MOST_SECONDS)


def _recorded_here(arguments, experiments, stop, ends, failed):
    """The rows of experiments, in the order of the grids; by value where time is short."""
    from replib.claims import deciding
    from replib.device import resolve_device
    from replib.lab import budget
    from replib.lab.record import record_jobs

    again = {"retime_below": arguments.retime_below, "recording": arguments.recording}
    device_type = resolve_device(arguments.device).type
    if ends is None:
        asked = (
            (one, job.on_device(device_type))
            for one in experiments
            for job in one.jobs(arguments.scale)
        )
    else:
        chooser = budget.Budget(ends, arguments.device, interrupts.say)
        placed = budget.wanted(experiments, deciding(), arguments.scale, device_type, **again)
        asked = chooser.chosen(placed)
    options = {"device": arguments.device, "stop": stop.is_set, "watch": _print_progress}
    yield from record_jobs(asked, arguments.scale, **options, **again)


def _recorded_on(arguments, experiments, stop, ends, failed):
    """The rows of experiments, from a cluster; with `--minutes` first seeds first."""
    from replib.claims import deciding
    from replib.lab import budget, cluster

    again = {"retime_below": arguments.retime_below, "recording": arguments.recording}
    how = {"device": arguments.device, "threads": arguments.threads}
    with cluster.connected(arguments.on, exclusive=arguments.exclusive, **how) as workers:
        interrupts.say(workers.text)
        asked = [
            (one, job.on_device(workers.device))
            for one in experiments
            for job in one.jobs(arguments.scale)
        ]
        if ends is not None:
            asked = [job for _, job in budget.by_value(asked, deciding())]
        options = {"stop": stop.is_set, "watch": _print_progress, "failed": failed}
        yield from cluster.record_on(workers, asked, arguments.scale, **options, **again)


def _print_progress(glimpse) -> None:
    if sys.stderr.isatty():
        print(f"\r{glimpse.text}  ", end="", file=sys.stderr)


def _serve(arguments) -> int:
    interrupts.end_at_once_always()  # before torch starts threads
    from replib.lab.memory_use import peak_memory_bytes, tune_memory

    tune_memory()
    from altair.utils import schemapi

    from replib.claims import CLAIMS, PAGES, start
    from replib.pages import processor, server, workers

    schemapi.disable_debug_mode()  # to check every part of every chart is the work of tests

    token = secrets.token_urlsafe(16) if arguments.token == NEW_TOKEN else arguments.token
    pages = {
        address: server.Page(
            files.ROOT / "notebooks" / f"{stem}.py",
            partial(start.opening, stem),
            ".r-card" if address else ".r-answers",
        )
        for address, stem in ({"": start.NOTEBOOK} | PAGES).items()
    }
    site = server.application(pages, host=arguments.host, token=token)
    listener = server.listening(arguments.host, arguments.port)

    if workers.chosen():  # of local workers, which Ctrl-C ends at once
        sys.warnoptions.append("ignore::UserWarning:multiprocessing.resource_tracker")

    def said_of_cluster(opened) -> None:
        found = opened.exception() or f"live trainings go to {opened.result().text}"
        print(f"replib: {found}", flush=True)

    def warm() -> None:
        if cluster := workers.chosen():
            workers.of(cluster).connect().add_done_callback(said_of_cluster)
        for claim in CLAIMS:
            recorded = claim.recorded()
            for statement in claim.statements:
                recorded.verdict(statement)
        processor.warm()

    # The profiler complains in a thread unless the main one has used it first.
    peak_memory_bytes(lambda: None)
    url = server.address(arguments.host, listener.getsockname()[1], token)
    print(f"replib: the notebooks are at {url} (Ctrl-C ends)", flush=True)
    if not server.is_loopback(arguments.host):
        print(
            "replib: every machine that reaches this one can open them with the token, and train "
            "models here; what goes between is not encrypted",
            flush=True,
        )
    server.run(site, listener, browser=None if arguments.no_browser else url, warm=warm)
    return 0


def _report(arguments) -> int:
    from replib.report.write import write_report

    notebooks = list(itertools.takewhile(lambda word: not word.startswith("--"), arguments.rest))
    parameters = _parameters(arguments.rest[len(notebooks) :])
    for path in write_report(
        notebooks, parameters, pdf=arguments.pdf, say=partial(print, flush=True)
    ):
        print(path)
    return 0


def _parameters(words: list[str]) -> dict[str, str]:
    """`--seq-len 4096 --batch=2` as {"seq-len": "4096", "batch": "2"}.

    Raises:
        ValueError: a word belongs to no option, or an option has no value.
    """
    found, words = {}, list(words)
    while words:
        name, equals, value = words.pop(0).partition("=")
        if not name.startswith("--"):
            raise ValueError(f"{name!r} belongs to no option: write notebooks before options")
        if not equals:
            if not words or words[0].startswith("--"):
                raise ValueError(f"{name} has no value: write {name} VALUE")
            value = words.pop(0)
        found[name.removeprefix("--")] = value
    return found


def _doctor(arguments) -> int:
    from replib import doctor

    for line in doctor.lines():
        print(line)
    return 0


def _gpu(arguments) -> int:
    from pathlib import Path

    from replib.lab.memory_use import tune_memory
    from replib.lab.record import SCALES
    from replib.visit import Visit

    ends = _ends(arguments)
    if arguments.scale not in SCALES:
        raise ValueError(f"unknown scale {arguments.scale!r}: use {', '.join(SCALES)}")
    tune_memory()
    with interrupts.stopping(ends) as stop:
        how = {"device": arguments.device, "stop": stop.is_set, "watch": _print_progress}
        visit = Visit(arguments.to and Path(arguments.to), ends, arguments.scale, **how)
        visit.run()
    if stop.number:
        return interrupts.status(stop.number)
    return 1 if visit.n_failed else 0


def _merge(arguments) -> int:
    from pathlib import Path

    import benchmarks.schema  # noqa: F401  its rows can be read from now on
    from benchmarks.comparison import EXPERIMENT
    from replib.claims import EXPERIMENTS
    from replib.lab.merge import merge

    merged = merge(Path(arguments.folder), {*EXPERIMENTS, EXPERIMENT})
    for name, n_rows in merged.added.items():
        print(f"{name}: {n_rows} row{'s' * (n_rows != 1)} added")
    for name in merged.models:
        print(f"models/{name} added")
    for line in merged.refused:
        print(f"refused: {line}")
    if not merged.added and not merged.models:
        print("nothing was added")
    return 1 if len(merged.refused) > merged.n_double else 0


if __name__ == "__main__":
    interrupts.leave(main(began=interrupts.process_began()))
