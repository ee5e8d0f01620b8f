"""What this machine has and what is missing."""

import platform
from collections.abc import Iterator
from importlib.util import find_spec

import torch

from replib import __version__, files
from replib.lab import provenance, store
from replib.lab.memory_use import tune_memory

SHOWING = ("marimo", "altair", "polars", "vl_convert")


def lines() -> Iterator[str]:
    """A line each: versions, devices, packages, folders, and the rows of every experiment."""
    from benchmarks.peers import PEERS
    from replib.claims import EXPERIMENTS

    yield f"replib {__version__}, Python {platform.python_version()}, torch {torch.__version__}"
    for device in ["cpu"] + ["cuda"] * torch.cuda.is_available():
        facts = provenance.provenance(device)
        yield f"{device}: {facts['device_name']}, {facts['threads']} threads"
    for package in SHOWING:
        found = find_spec(package) is not None
        yield f"{package}: {'found' if found else 'missing; pip install -r requirements.txt'}"
    for package in ("numba", "triton"):
        found = find_spec(package) is not None
        yield f"{package}: {'found' if found else f'missing; pip install {package}'}"
    if find_spec("distributed") is None:
        yield "distributed: missing, needed for --on alone: see docs/cluster.md"
    else:
        yield "distributed: found"
    for name, peer in PEERS.items():
        missing = None if find_spec(peer.package) else "missing: see docs/benchmarks.md"
        yield f"{name}: {missing or 'found'}"
    yield f"memory: {tune_memory()}"
    for folder in (files.data_folder(), files.cache_folder()):
        yield f"{folder}: {files.writable(folder) or 'writable'}"
    for name in EXPERIMENTS:
        try:
            content = store.read(name)
            n_rows, n_without = len(content.rows), content.n_without_digest
        except files.FileError as error:
            yield f"{name}: {error}"
            continue
        bare = f", {n_without} of them without a digest (recorded before there were any)"
        yield f"{name}: {n_rows} rows recorded{bare * bool(n_without)}"
