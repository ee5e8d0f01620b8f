"""Compiled kernels on all threads: what a call hands them, how they start, and where their machine
code is kept.

A kernel has passes, each a function of Numba (words, i, scratch) of one piece of work, such as a
(batch, head): `words` is the address of 64-bit words, the first of which are those below, and
`scratch` that of the thread's own memory.
"""

import ctypes
import hashlib
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from threading import Lock, Thread
from types import FunctionType

import torch
from numba import cfunc, config, types

from replib.kernels.numba import vectors as vec

NEXT, NEXT_SLOT, SCRATCH, SCRATCH_BYTES, N_PIECES = range(5)
OWN = 5  # the first of the kernel's own words
CACHE_LINE = 64  # bytes; two threads write to none together

_compiling = Lock()
_work = None  # of each pass its own: see `_thread_of`


def _thread(words):
    """What each thread does: take one piece of work after another until none is left."""
    slot = vec.fetch_and_add(words + 8 * NEXT_SLOT)
    scratch = vec.word(words, SCRATCH) + slot * vec.word(words, SCRATCH_BYTES)
    i = vec.fetch_and_add(words + 8 * NEXT)
    while i < vec.word(words, N_PIECES):
        _work(words, i, scratch)
        i = vec.fetch_and_add(words + 8 * NEXT)


def _thread_of(work: Callable, name: str) -> Callable:
    """`_thread` of a pass, under a name of its own, by which Numba keeps the machine code. (In a
    closure the pass would be a part of Numba's key, and another one in every process.)"""
    thread = FunctionType(_thread.__code__, globals() | {"_work": work}, name)
    thread.__qualname__ = name
    return thread


@cache
def _code_folder() -> Path:
    """Where Numba keeps the machine code: a folder of its own for each state of the sources.

    Numba itself would look at this file alone, and go on with old code when another changes.
    """
    sources = sorted(Path(__file__).parents[1].rglob("*.py"))
    state = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    return Path(__file__).parent / "__pycache__" / state[:16]


class Kernel:
    """The passes of a kernel, compiled at the first call.

    Args:
        name: what is said to be compiled.
        compile_s: about how long that takes, on two cores.
        passes: (words, i, scratch), by name.
    """

    def __init__(self, name: str, compile_s: int, **passes: Callable):
        self.name, self.compile_s = name, compile_s
        self._threads = {
            key: _thread_of(work, f"{work.__module__.replace('.', '_')}_{key}")
            for key, work in passes.items()
        }
        self._code: dict[str, Callable] = {}

    def compiled(self) -> bool:
        """Whether the machine code is at hand, from this process or an earlier one."""
        names = (thread.__name__ for thread in self._threads.values())
        return all(any(_code_folder().rglob(f"*{name}*.nbi")) for name in names)

    def compile_now(self) -> None:
        """Compile all passes, or load them where they have been compiled."""
        with _compiling:
            if self._code:
                return
            if not self.compiled():
                print(
                    f"replib: compiling {self.name}: about {self.compile_s} s, once for this "
                    "version",
                    file=sys.stderr,
                )
            before, config.CACHE_DIR = config.CACHE_DIR, str(_code_folder())
            try:
                compile_thread = cfunc(types.void(types.int64), cache=True)
                self._code = {key: compile_thread(x) for key, x in self._threads.items()}
            finally:
                config.CACHE_DIR = before

    def run(self, key: str, words: ctypes.Array, n_pieces: int, scratch_floats: int = 0) -> None:
        """Let the threads do all pieces of a pass, each with so many floats of memory of its own,
        and wait for them; `words` holds what the kernel itself wants to know."""
        if not self._code:
            self.compile_now()
        n_threads = min(torch.get_num_threads(), n_pieces)
        scratch_bytes = (4 * scratch_floats + 2 * CACHE_LINE - 1) // CACHE_LINE * CACHE_LINE
        scratch = torch.empty(n_threads * scratch_bytes, dtype=torch.uint8)
        words[SCRATCH:OWN] = scratch.data_ptr(), scratch_bytes, n_pieces
        _in_parallel(self._code[key], ctypes.addressof(words), n_threads)


def _in_parallel(thread, words: int, n_threads: int) -> None:
    """Call thread(words) on n threads at once, and wait for them.

    They are those of torch's own OpenMP where it has GNU's entry point: after an operation these
    wait in a loop for milliseconds for the next, and would take the processor from others.
    """
    if n_threads == 1:
        thread.ctypes(words)
    elif (start := _openmp()) is not None:
        start(thread.address, words, n_threads, 0)
    else:
        others = [Thread(target=thread.ctypes, args=(words,)) for _ in range(n_threads - 1)]
        for other in others:
            other.start()
        thread.ctypes(words)
        for other in others:
            other.join()


@cache
def _openmp():
    """GOMP_parallel(function, argument, number of threads, flags), or None."""
    try:
        start = ctypes.CDLL(None).GOMP_parallel
    except (AttributeError, OSError, TypeError):  # macOS, Windows
        return None
    start.argtypes = ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint
    start.restype = None
    return start
