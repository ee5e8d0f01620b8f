"""Sequences longer than one device holds: causal attention with a state, over several ranks."""

from replib.parallel.model import SequenceParallel, attend
from replib.parallel.processes import run_processes
from replib.parallel.ranks import WAYS, AllGather, Ranks, Ring, Traffic, VirtualRanks
from replib.parallel.states import Effect, local_state, merge, output

__all__ = [
    "WAYS",
    "AllGather",
    "Effect",
    "Ranks",
    "Ring",
    "SequenceParallel",
    "Traffic",
    "VirtualRanks",
    "attend",
    "local_state",
    "merge",
    "output",
    "run_processes",
]
