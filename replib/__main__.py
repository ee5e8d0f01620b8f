"""The command line: `python -m replib list | record | bench | serve | report | doctor`."""

import argparse
import itertools
import platform
import runpy
import signal
import socket
import sys
import threading
from contextlib import suppress
from functools import partial

import torch

from replib import __version__, store
from replib.device import resolve_device
from replib.experiments import EXPERIMENTS, SCALES, experiment_named
from replib.memory import peak_memory_bytes, tune_memory
from replib.peers import PEERS
from replib.recording import core_seconds, record
from replib.training import Metrics

FIRST_PORT = 2718
# Of a row, what a line of the terminal has room for.
FIGURES = ("final_loss", "best_loss", "final_accuracy", "bits_per_dim", "steps_per_s")
FIGURES += ("time_ms", "memory_bytes")


def main(argv: list[str] | None = None) -> int:
    """Run a command; the exit status is 0, 1 for a stopped run, 2 for a caller's mistake, 130 for
    one that Ctrl-C ended at once."""
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    if rest and arguments.run is not _report:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    arguments.rest = rest
    try:
        return arguments.run(arguments)
    except (ValueError, store.StoreError) as error:
        print(f"replib: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("replib: ended; what was recorded is kept", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m replib", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name, run, text):
        sub = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.set_defaults(run=run)
        return sub

    command("list", _list, "list the experiments, their scales and what is recorded of each")
    sub = command("record", _record, "run an experiment and append its rows to data/")
    sub.add_argument("experiment", help=", ".join([*EXPERIMENTS, "all"]))
    sub.add_argument("--scale", default="smoke", help=f"{', '.join(SCALES)} (default: smoke)")
    sub.add_argument("--device", default=None, help="auto, cpu or cuda (default: auto)")
    sub.add_argument("--threads", type=int, default=None, help="CPU threads (default: all)")
    text = "time again what has fewer than N samples, where there is time for so many"
    sub.add_argument("--retime-below", type=int, default=0, metavar="N", help=text)
    text = "number of a recording of scaling (default: 0); make the next at another time"
    sub.add_argument("--recording", type=int, default=0, metavar="K", help=text)
    sub = command("bench", _bench, "measure what is here against its peers, interleaved")
    sub.add_argument("--device", default=None, help="auto, cpu or cuda (default: auto)")
    sub.add_argument("--quick", action="store_true", help="small sizes: about a minute")
    sub.add_argument("--only", nargs="+", default=[], metavar="GROUP", help="(default: all)")
    sub.add_argument("--no-save", action="store_true", help="append no rows to data/")
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
    command("doctor", _doctor, "say what this machine has and what is missing")
    return parser


def _list(arguments) -> int:
    for experiment in EXPERIMENTS.values():
        rows = store.read_rows(experiment.name)
        counts = [f"{s}: {sum(row['scale'] == s for row in rows)} rows" for s in SCALES]
        hours = sum(map(core_seconds, rows)) / 3600
        span = f"{hours:.1f} core-hours" if hours >= 1 else f"{60 * hours:.0f} core-minutes"
        took = f"; trained for {span}" if hours else ""
        print(f"{experiment.name:14} {experiment.title}")
        print(f"{'':14} recorded: {', '.join(counts)}{took}")
    return 0


def _record(arguments) -> int:
    names = list(EXPERIMENTS) if arguments.experiment == "all" else [arguments.experiment]
    experiments = [experiment_named(name) for name in names]
    if arguments.threads is not None:
        if arguments.threads < 1:
            raise ValueError(f"--threads {arguments.threads}: use at least 1")
        torch.set_num_threads(arguments.threads)
    tune_memory()
    stop, n_rows = _stop_on_interrupt(), 0
    for experiment in experiments:
        for row in record(
            experiment,
            arguments.scale,
            device=arguments.device,
            stop=stop.is_set,
            on_metrics=_print_metrics,
            retime_below=arguments.retime_below,
            recording=arguments.recording,
        ):
            print(_line(row), flush=True)
            n_rows += 1
    if not n_rows and not stop.is_set():
        print("nothing to do: what can run here of this scale is recorded for the present code")
    if stop.is_set():
        print("stopped: what was recorded is kept; the same command continues", file=sys.stderr)
        return 1
    return 0


def _stop_on_interrupt() -> threading.Event:
    """An event that Ctrl-C sets; a second Ctrl-C ends the process at once."""
    stop = threading.Event()

    def handle(number, frame):
        stop.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        print("\nstopping after this step (Ctrl-C again to end at once)", file=sys.stderr)

    signal.signal(signal.SIGINT, handle)
    return stop


def _print_metrics(job, metrics: Metrics) -> None:
    if sys.stderr.isatty():
        seeds = ", ".join(map(str, getattr(job, "seeds", None) or [job.seed]))
        print(
            f"\r{job.config.model.attention} N={job.config.task.seq_len} seed {seeds}: "
            f"step {metrics.step}/{job.config.n_steps}, loss {metrics.loss:.4f}, "
            f"{metrics.steps_per_s:.1f} steps/s, {metrics.seconds_left:.0f} s left  ",
            end="",
            file=sys.stderr,
        )


def _line(row: store.Row) -> str:
    config, summary = row["config"], row["summary"]
    model = config.get("model", config)
    length = config.get("task", config)["seq_len"]
    parts = ("way", "span") if "way" in model else ("attention", "implementation", "update_rule")
    who = " ".join(filter(None, map(model.get, parts)))
    if "way" in model:
        who += f" {model['n_layers']} layers batch {model['batch_size']}"
    who += "".join(f" +{defect}" for defect in config.get("defects", ()))
    figures = ", ".join(
        f"{name} {summary[name]:.4g}" for name in FIGURES if summary.get(name) is not None
    )
    why = f" ({row['detail']})" if row["detail"] else ""
    return (
        f"{row['experiment']} {who} N={length} seed {row['seed']}: {row['outcome']}{why} {figures}"
    )


def _bench(arguments) -> int:
    from replib.bench import QUICK, bench_table, run_bench
    from replib.races import EXPERIMENT

    tune_memory()
    device, stop = resolve_device(arguments.device), _stop_on_interrupt()
    measured = run_bench(
        arguments.only,
        device=device,
        scale=QUICK if arguments.quick else None,
        stop=stop,
        say=partial(print, flush=True),
    )
    if not arguments.no_save and (why_not := store.writable(store.data_folder())):
        raise store.StoreError(why_not)
    facts = store.provenance(str(device))
    print(f"{facts['device_name']}, {facts['threads']} threads, torch {facts['torch']}")
    rows = []
    for row in measured:
        rows.append(row)
        if not arguments.no_save:
            store.append(EXPERIMENT, row)
    print(f"\n{bench_table(rows)}")
    if stop.is_set():
        print("stopped: what was measured is kept", file=sys.stderr)
    return int(stop.is_set())


def _serve(arguments) -> int:
    port = _free_port(arguments.port)
    tune_memory()
    # marimo runs notebooks as threads of its server: what is imported here is not waited for
    # when the first page opens.
    import altair  # noqa: F401
    import polars  # noqa: F401

    # The profiler complains in a thread unless the main one has used it first.
    peak_memory_bytes(lambda: None)
    print(f"replib: the notebooks are at http://127.0.0.1:{port} (Ctrl-C ends)", flush=True)
    sys.argv = ["marimo", "-q", "-y", "-l", "ERROR", "run", str(store.ROOT / "notebooks")]
    sys.argv += ["--host", "127.0.0.1", "--port", str(port)]
    sys.argv += ["--headless"] * arguments.no_browser
    runpy.run_module("marimo", run_name="__main__")
    return 0


def _free_port(first: int) -> int:
    """The first port from `first` on that nobody listens at.

    Raises:
        ValueError: there is none among the next hundred.
    """
    for port in range(first, first + 100):
        with socket.socket() as listener, suppress(OSError):
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", port))
            return port
    raise ValueError(f"no free port from {first} to {first + 99}: use --port")


def _report(arguments) -> int:
    from replib.report import write_report

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
    from importlib.util import find_spec

    print(f"replib {__version__}, Python {platform.python_version()}, torch {torch.__version__}")
    for device in ["cpu"] + ["cuda"] * torch.cuda.is_available():
        facts = store.provenance(device)
        print(f"{device}: {facts['device_name']}, {facts['threads']} threads")
    for package in ("marimo", "altair", "polars", "vl_convert"):
        found = find_spec(package) is not None
        print(f"{package}: {'found' if found else 'missing; pip install -r requirements.txt'}")
    for name, peer in PEERS.items():
        found = find_spec(peer.package) is not None
        print(f"{name}: {'found' if found else 'missing, for bench only: see README, Bench'}")
    print(f"memory: {tune_memory()}")
    for folder in (store.data_folder(), store.cache_folder()):
        print(f"{folder}: {store.writable(folder) or 'writable'}")
    for name in EXPERIMENTS:
        print(f"{name}: {len(store.read_rows(name))} rows recorded")
    return 0


if __name__ == "__main__":
    sys.exit(main())
