"""Ranks as processes of this machine.

They are processes of their own, each with one interpreter, whose functions are named and not
copied: a page is a thread of a server that cannot be forked.
"""

import os
import pickle
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
        RuntimeError: a process failed, with what it said last; the others are ended.
        TimeoutError: they took longer than `timeout_s`.
    """
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
    """Until all have ended well."""
    ends = time.monotonic() + timeout_s
    while True:
        status = [child.poll() for child in children]
        failed = [rank for rank, code in enumerate(status) if code]
        if failed:
            said = [f"{r}: {Path(folder, f'said-{r}').read_text()[-2000:]}" for r in failed]
            raise RuntimeError("ranks failed; " + "; ".join(said))
        if all(code == 0 for code in status):
            return
        if time.monotonic() > ends:
            raise TimeoutError(f"{len(children)} ranks took longer than {timeout_s:g} s")
        time.sleep(POLL_S)


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
