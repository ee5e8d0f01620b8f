"""Ctrl-C and SIGTERM end a command within a second, with one line and the status a shell expects.

Nothing is lost by that: rows are written whole, and a training goes on at its last checkpoint.
"""

import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic
from typing import NoReturn

from replib.files import FileError

SIGNALS = (signal.SIGINT, signal.SIGTERM)
GRACE_S = 0.5  # for the step under way to end, and be checkpointed
OVERTIME_S = 5.0  # the same, where it is a command's time that is up
ENDED = "ended; what was recorded is kept"
CONTINUES = "stopped: what was recorded is kept; the same command continues"
BROKEN_PIPE = 141  # as a shell tells of SIGPIPE


def process_began() -> float:
    """When this process began, of `monotonic`; now where the system does not tell (not Linux)."""
    now = monotonic()
    try:
        ticks = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
        up_s = float(Path("/proc/uptime").read_text().split()[0])
        return now - max(0.0, up_s - int(ticks) / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError):
        return now


def status(number: int) -> int:
    """The exit status of a process that a signal has ended."""
    return 128 + number


def end_at_once() -> None:
    """From now on Ctrl-C and SIGTERM end the process where it stands, with a line."""
    for number in SIGNALS:
        signal.signal(number, lambda number, frame: _end(number, ENDED))


def end_at_once_always() -> None:
    """As `end_at_once`, whatever handlers are set later, as a server's: it would wait for its
    pages, and show traces. Runs of pages are kept as they end."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        return
    # Blocked in this thread and all that it starts, the signals are left to the one that waits: to
    # be called before libraries start threads.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    threading.Thread(target=lambda: _end(signal.sigwait(SIGNALS), ENDED), daemon=True).start()


def _end(number: int, text: str) -> None:
    say(text)
    os._exit(status(number) if number else 0)


def say(text: str) -> None:
    """A line on stderr; on a terminal below the "^C" and what stands there of a run's progress."""
    with suppress(OSError):  # nobody may be reading
        os.write(2, f"{chr(10) * os.isatty(2)}replib: {text}\n".encode())


class Stop(threading.Event):
    """Set by a signal, `number` is the signal's; 0 where a command's time was up."""

    number: int = 0


@contextmanager
def stopping(ends: float | None = None, grace_s: float | None = None) -> Iterator[Stop]:
    """What Ctrl-C and SIGTERM set while a run is under way. A run that has not stopped `grace_s`
    later (GRACE_S if left out), as its step is long, is ended where it stands; so it is at once by
    a second signal. It is set at `ends` (of `monotonic`) too, if that is given, and OVERTIME_S
    later the process ends where it stands, with the status 0: rows are written whole.

    The signal is seen by a thread of its own: Python's own handlers wait for a long step to end.
    """
    stop, (reader, writer) = Stop(), os.pipe()
    os.set_blocking(writer, False)
    timers = []
    if ends is not None:
        seconds = max(0.0, ends - monotonic())
        timers = [
            threading.Timer(seconds, stop.set),
            threading.Timer(seconds + OVERTIME_S, lambda: _end(stop.number, CONTINUES)),
        ]
    for timer in timers:
        timer.daemon = True
        timer.start()

    def watch() -> None:
        grace = GRACE_S if grace_s is None else grace_s
        end = threading.Timer(grace, lambda: _end(stop.number, CONTINUES))
        end.daemon = True
        with open(reader, "rb", buffering=0) as numbers:
            while byte := numbers.read(1):  # nothing once the run has ended
                if byte[0] not in SIGNALS:
                    continue
                if stop.number and end.is_alive():
                    _end(stop.number, CONTINUES)
                stop.number = byte[0]
                stop.set()
                end.start()
        end.cancel()

    # The watching thread is told by the interpreter's own handler, which needs one of Python's.
    before = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield stop
    finally:
        for timer in timers:
            timer.cancel()
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(writer)
        watcher.join()


def run(command: Callable[[], int]) -> int:
    """Run a command; the exit status is its own, 2 for a caller's mistake, and as a shell tells of
    signals: 130 for a run that Ctrl-C has stopped, 143 for SIGTERM, 141 where nobody reads on."""
    warnings.formatwarning = lambda message, *_, **__: f"replib: {message}\n"
    try:
        status = command()
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        _to_nobody()
        return BROKEN_PIPE
    except (ValueError, FileError) as error:
        print(f"replib: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"replib: {ENDED}", file=sys.stderr)
        return 130


def leave(code: int) -> NoReturn:
    """End the process; where a signal did, at once: torch takes a while to be taken down."""
    if code > 128:
        with suppress(OSError):
            sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _to_nobody() -> None:
    """What is still to be written goes nowhere: its reader, such as `head`, has closed the pipe."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
