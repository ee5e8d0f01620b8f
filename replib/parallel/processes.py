"""Ranks as processes of this machine.

They are processes of their own, each with one interpreter, whose functions are named and not
copied: a page is a thread of a server that cannot be forked.
"""

import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

TIMEOUT_S = 300.0  # for what runs on a page and in tests; a script gives its own
POLL_S = 0.05


def run_processes(
    function: Callable[..., Any],
    size: int,
    *args: Any,
    timeout_s: float = TIMEOUT_S,
    threads: int = 1,
    backend: str = "gloo",
) -> list[Any]:
    """What `function(*args)` returns in each of so many processes, which are the ranks of one group
    of torch.distributed.

    Args:
        function: at the top level of a module; it is found there by its name.
        threads: torch's, of each process.
        backend: "gloo", or on CUDA "nccl", a device a rank. The second has not been run yet.

    Raises:
        ValueError: there is no rank.
        RuntimeError: a process failed, or ended without a result: how, and what it said last; the
            others are ended.
        TimeoutError: they took longer than `timeout_s`.
    """
    if size < 1:
        raise ValueError(f"{size} ranks: use at least 1")
    with tempfile.TemporaryDirectory() as folder:
        job = (function.__module__, function.__qualname__, args, size, threads, backend, timeout_s)
        Path(folder, "job").write_bytes(pickle.dumps(job))
        command = [sys.executable, "-c", f"from {__name__} import _child; _child()", folder]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        if sys.platform == "linux":
            environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
        children = []
        try:
            for rank in range(size):
                with open(Path(folder, f"said-{rank}"), "wb") as said:
                    started = subprocess.Popen(
                        [*command, str(rank)], env=environment, stdout=said, stderr=said
                    )
                children.append(started)
            _wait(children, Path(folder), timeout_s)
        finally:
            for child in children:
                child.kill()
                child.wait()
        return [pickle.loads(Path(folder, f"result-{rank}").read_bytes()) for rank in range(size)]


def _wait(children: list[subprocess.Popen], folder: Path, timeout_s: float) -> None:
    """Until all have ended with a result."""
    ends = time.monotonic() + timeout_s
    while True:
        status = [child.poll() for child in children]
        failed = [
            f"{rank}, {_how(code)}: {_last_words(folder / f'said-{rank}')}"
            for rank, code in enumerate(status)
            if code or (code == 0 and not (folder / f"result-{rank}").exists())
        ]
        if failed:
            raise RuntimeError("ranks failed; " + "; ".join(failed))
        if all(code == 0 for code in status):
            return
        if time.monotonic() > ends:
            raise TimeoutError(f"{len(children)} ranks took longer than {timeout_s:g} s")
        time.sleep(POLL_S)


def _how(code: int) -> str:
    """How a process ended that failed."""
    if code < 0:
        return f"ended by signal {-code} ({signal.strsignal(-code)})"
    return f"exit status {code}" if code else "exit status 0 without a result"


def _last_words(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace")[-2000:] or "said nothing"


def _child() -> None:
    """What a process does: join the group, call the function, leave what it returns."""
    from importlib import import_module

    import torch
    from torch import distributed

    folder, rank = Path(sys.argv[1]), int(sys.argv[2])
    job = pickle.loads((folder / "job").read_bytes())
    module, name, args, size, threads, backend, timeout_s = job
    torch.set_num_threads(threads)
    if backend == "nccl":
        torch.cuda.set_device(rank)
    distributed.init_process_group(
        backend,
        store=distributed.FileStore(str(folder / "store"), size),
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=timeout_s),
    )
    result = getattr(import_module(module), name)(*args)
    distributed.barrier()
    distributed.destroy_process_group()
    (folder / f"result-{rank}").write_bytes(pickle.dumps(result))
