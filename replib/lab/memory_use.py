"""Memory: what a call takes, what there is, and how to tell that it ran out."""

import ctypes
import gc
import os
import threading
import weakref
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

try:
    import resource
except ImportError:  # Windows
    resource = None

import torch
from torch.autograd import profiler
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from replib.device import resolve_device

TIMING_LOCK = threading.Lock()
"""Held around every timing and memory trace: marimo serves all notebooks as threads of one
process. It is not reentrant: do not hold it when calling a function of this module."""

# Parameters of glibc's mallopt, by malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
# By itself glibc maps every block above 32 MB (at most) anew and unmaps it when it is freed, so
# that each call pays a page fault for every 4 kB of its temporaries: half the time of a call. Linux
# has pages of 2 MB, which torch asks for where this variable says so at its first allocation.
LARGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
LARGE_PAGES_VARIABLE = "THP_MEM_ALLOC_ENABLE"
TUNED = {LARGE_PAGES_VARIABLE: "1"}
# Without them malloc can keep blocks below the first of these when they are freed, up to the second
# at the end of the heap. That saves as much time but takes up to twice the memory.
KEPT_BLOCK_BYTES = 256 * 2**20
KEPT_BYTES = 512 * 2**20
TUNING_VARIABLE = "REPLIB_TUNE_MEMORY"  # "0" leaves the allocator as it is
# Where one of these is set somebody has tuned it already.
MALLOC_VARIABLES = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")
# torch raises plain RuntimeErrors for these; the last is a size beyond 2^63 bytes.
OUT_OF_MEMORY_TEXTS = (
    "can't allocate memory",
    "out of memory",
    "not enough memory",
    "alloc_failed",
    "storage size calculation overflowed",
)


def peak_memory_bytes(function: Callable[[], object], device: str | torch.device = "cpu") -> int:
    """The most memory that one call holds beyond what was allocated before it, in bytes.

    On the CPU it is read from the allocation trace of torch's profiler: the peak of the running
    sum of allocations less frees, which is the same at every run. It counts every tensor that
    the call allocates through torch: temporaries, what autograd saves for the backward pass,
    gradients and the result. It does not count the scratch memory of MKL and oneDNN, arrays of
    numpy, Python objects, or tensors made by Python threads that the call starts. The inputs
    existed before, so they are not counted, nor does it help to free them.

    On CUDA it is `max_memory_allocated` less the memory allocated before; tensors that other
    threads allocate meanwhile are counted too.
    """
    device = resolve_device(device)
    with TIMING_LOCK:
        if device.type == "cuda":
            return _peak_cuda_bytes(function, device)
        # Else the profiler's library prints two lines of its own for every trace.
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")
        with profiler.profile(use_kineto=True, profile_memory=True) as trace:
            function()
        return _peak_of_trace(_cpu_allocations(trace.kineto_results))


def traced_bytes(function: Callable[[], object], device: torch.device) -> int:
    """`peak_memory_bytes` but for what operations allocate within themselves; in any thread, where
    torch's profiler wants one alone, and without the lock."""
    if device.type == "cuda":
        return _peak_cuda_bytes(function, device)
    with _Storages() as trace:
        function()
    return trace.peak


class _Storages(TorchDispatchMode):
    """The sum of the storages that operations return, from when they do until they are freed."""

    def __init__(self):
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.total = self.peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        for x in tree_leaves(found):
            if isinstance(x, torch.Tensor):
                self._count(x.untyped_storage())
        return found

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self.sizes:
            self.sizes[key] = storage.nbytes()
            self.total += storage.nbytes()
            self.peak = max(self.peak, self.total)
            weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        self.total -= self.sizes.pop(key)


def _peak_cuda_bytes(function: Callable[[], object], device: torch.device) -> int:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    function()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _cpu_allocations(results) -> list[tuple[int, int]]:
    """Address and size of every allocation (positive) and free (negative), in time order."""
    events, found = list(results.experimental_event_tree()), []
    while events:
        event = events.pop()
        events.extend(event.children)
        fields = event.extra_fields
        if hasattr(fields, "alloc_size") and fields.device.type == "cpu":
            found.append((event.start_time_ns, fields.ptr, fields.alloc_size))
    return [(pointer, size) for _, pointer, size in sorted(found, key=lambda row: row[0])]


def _peak_of_trace(allocations: Iterable[tuple[int, int]]) -> int:
    # A free counts only when its allocation was seen: the profiler remembers blocks of earlier
    # traces, and the free of one would push the sum below zero.
    live: dict[int, int] = {}
    total = peak = 0
    for pointer, size in allocations:
        total -= live.pop(pointer, 0)
        if size > 0:
            live[pointer] = size
            total += size
            peak = max(peak, total)
    return peak


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return any(text in str(error).lower() for text in OUT_OF_MEMORY_TEXTS)


def release_memory(device: torch.device) -> None:
    """Give back what a failed allocation left behind."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def tune_memory() -> str:
    """Spare calls most of the page faults of their temporaries, for the whole process, and say how.
    Call it before the first tensor is made.

    By pages of 2 MB where Linux has them, else by a malloc of glibc that keeps what is freed (in
    one heap for all threads, as those of a thread are 64 MB at most); REPLIB_TUNE_MEMORY=0 leaves
    all as it is. What is allocated, and so `peak_memory_bytes`, is the same either way.
    """
    if os.environ.get(TUNING_VARIABLE) == "0":
        return f"as it is, by {TUNING_VARIABLE}=0"
    own = (LARGE_PAGES_VARIABLE, *MALLOC_VARIABLES)
    if tuned := [name for name in own if os.environ.get(name) not in (None, TUNED.get(name))]:
        return f"as {tuned[0]} says"
    with suppress(OSError):  # not Linux
        if "[never]" not in LARGE_PAGES.read_text():
            os.environ.update(TUNED)
            return f"in pages of 2 MB where it is large ({TUNING_VARIABLE}=0 leaves it as it is)"
    try:
        libc = ctypes.CDLL(None)
        _ = libc.gnu_get_libc_version  # mallopt of another C library means something else
        kept = libc.mallopt(M_MMAP_THRESHOLD, KEPT_BLOCK_BYTES)
        kept &= libc.mallopt(M_TRIM_THRESHOLD, KEPT_BYTES) & libc.mallopt(M_ARENA_MAX, 1)
    except (AttributeError, OSError, TypeError):  # another C library, or none to be had
        kept = 0
    if not kept:
        return "as it is: neither large pages nor glibc"
    return (
        f"kept when it is freed, in blocks below {KEPT_BLOCK_BYTES >> 20} MB "
        f"({TUNING_VARIABLE}=0 leaves it as it is)"
    )


def trim_memory() -> None:
    """Give freed memory back to the system at once, where the C library (glibc) would keep it."""
    with suppress(AttributeError, OSError, TypeError):  # another C library, or none to be had
        ctypes.CDLL(None).malloc_trim(0)


def page_faults() -> int:
    """Pages that the system has given this process so far: memory touched for the first time since
    it was mapped. 0 where they are not counted (Windows)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt if resource else 0
