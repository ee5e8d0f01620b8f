"""Time and peak memory over the sequence length, of attention alone or of a training step.

B batch, H heads, N sequence length, D query/key (and here also value) size per head.

What is compared is timed together: after a warm-up, each round calls every candidate once, in a
new random order, so that a slow spell of the machine falls on all of them alike. What takes seconds
a call has rounds of its own after the others', for the memory that it takes and frees would be paid
for by whatever is called next. Page faults are counted, so that a sample that paid for another's is
told from one that did not.
"""

import math
import random
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field, fields, replace
from functools import lru_cache
from itertools import chain, takewhile
from threading import get_ident
from time import perf_counter
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from replib.attention import ATTENTION
from replib.attention.base import Options, variant_label
from replib.checks import check_known
from replib.device import available_memory_bytes, resolve_device
from replib.lab.memory_use import (
    TIMING_LOCK,
    is_out_of_memory,
    page_faults,
    peak_memory_bytes,
    release_memory,
    traced_bytes,
    trim_memory,
)
from replib.training import Training, TrainingConfig, n_parameters

VERSION = 1  # raised when what is counted as a time or a memory changes

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
WORKS = {"forward": "forward", "forward_backward": "forward and backward"}
# Far above any N published or reachable here: beyond it is a slip of the keyboard.
MAX_SEQ_LEN = 2**20

# A sample lasts at least this long: perf_counter and the call itself cost about 1 us, 0.05 %.
MIN_SAMPLE_MS = 2.0
# A call shorter than this is made untimed before each of its samples: another one's call left the
# caches cold, as they never are in a loop. A longer one heats them itself, but may take and free
# gigabytes: those are timed after the others.
LONG_CALL_MS = 1500.0
# Untimed calls go on until one takes as long as the best before it, within this factor, and as many
# page faults; they end after so many, as on a busy machine times never settle.
SETTLED_TIME = 1.25
MAX_WARMUPS = 8
# What a page fault takes, counted high (on a virtual machine 3 us, else a tenth of that), and which
# share of a sample's time its faults may take above those of the best call before it is marked.
FAULT_MS = 0.004
FAULT_SHARE = 0.05
# How often a wait for the lock looks whether it should stop.
LOCK_POLL_S = 0.1

# An estimate above this share of the free memory counts as out of memory. Linux promises memory
# that it does not have and kills the process when it is touched, so no exception can be awaited.
MEMORY_SHARE = 0.8

# The memory of a call is measured at these lengths, and longer ones are taken to grow as N² or
# slower; shorter ones would be mostly buffers.
TRACED_LENGTHS = (128, 256, 512)
# Which of c0, c1 and c2 are above 0, of what is fitted to measurements; of two the first.
TERMS = ((0, 1), (0, 1, 2), (0, 2), (1, 2), (1,), (2,), (0,))

Key = TypeVar("Key", bound=Hashable)


Stop = Callable[[], bool]
"""Asked between two calls whether to stop."""


def never() -> bool:
    """A `Stop` that does not."""
    return False


@dataclass(frozen=True, kw_only=True)
class CostConfig:
    """One point: what is run, at which size.

    Raises:
        ValueError: a value is unknown or out of range.
    """

    kind: ClassVar[str] = "cost"

    attention: str = "linear"
    options: Options | None = None
    kernel: str | None = None
    seq_len: int = 1024
    batch_size: int = 1
    n_heads: int = 8
    head_dim: int = 32
    causal: bool = True
    dtype: str = "float32"
    work: str = "forward_backward"

    def __post_init__(self):
        check_known(self, attention=ATTENTION, dtype=DTYPES, work=WORKS)
        mechanism = ATTENTION[self.attention]
        mechanism.check(self.options, self.kernel)
        if self.causal and not mechanism.causal:
            raise ValueError(f"{mechanism.label} attention cannot be causal: use causal=False")
        for name in ("seq_len", "batch_size", "n_heads", "head_dim"):
            _check_at_least_one(name, getattr(self, name))
        if self.seq_len > MAX_SEQ_LEN:
            raise ValueError(f"seq_len {self.seq_len} is too long: use at most {MAX_SEQ_LEN}")

    @property
    def versions(self) -> dict[str, int]:
        """Of each part that the cost is of, by its name."""
        own = {self.attention: ATTENTION[self.attention].VERSION}
        return own | timing_versions(self.attention, self.kernel)

    @property
    def variant(self) -> tuple[str, str | None]:
        """The mechanism, and what charts call its options and kernel."""
        return self.attention, variant_label(self.options, self.kernel)


def timing_versions(attention: str, kernel: str | None) -> dict[str, int]:
    """Of the protocol, and of each kernel of a mechanism that may be timed."""
    mechanism, found = ATTENTION[attention], {"timing": VERSION}
    for one in (mechanism.kernels or (None,)) if kernel is None else (kernel,):
        name = " ".join(filter(None, ("speed of", attention, one)))
        found[name] = mechanism.SPEED.get(one, 1)
    return found


def _check_at_least_one(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is {value!r}: use a whole number of at least 1")


@dataclass
class Samples:
    """What `interleave` measured of a callable: milliseconds and page faults a call, an entry a
    sample, and the fewest page faults of any call, untimed ones included: those that are its own.
    """

    time_ms: list[float] = field(default_factory=list)
    page_faults: list[float] = field(default_factory=list)
    own_page_faults: float = math.inf


@dataclass(frozen=True)
class Cost:
    """What one point took: a call of attention, or one training step.

    `time_ms` is a sample a repeat, and empty when nothing was timed; `memory_bytes` is the peak
    beyond the inputs (see `peak_memory_bytes`); `page_faults` and `own_page_faults` are those of
    `Samples`.
    """

    config: CostConfig | TrainingConfig
    outcome: Literal["ok", "out_of_memory", "interrupted"]
    detail: str | None
    time_ms: tuple[float, ...]
    memory_bytes: int | None
    page_faults: tuple[float, ...] = ()
    own_page_faults: float = math.inf

    def summary(self) -> dict:
        """The figures of a stored row: median and quartiles of the time, and the memory.

        Figures per sample are divided by the batch size, as in Katharopoulos et al. 2020, Fig. 1.
        `n_disturbed` samples had page faults beyond the call's own, and are not to be trusted.
        """
        quartiles = (None, None, None)
        if self.time_ms:
            quartiles = tuple(float(x) for x in np.quantile(self.time_ms, [0.25, 0.5, 0.75]))
        q25, median, q75 = quartiles
        faults = zip(self.time_ms, self.page_faults, strict=False)  # faults are not always counted
        return {
            "time_ms": median,
            "time_ms_q25": q25,
            "time_ms_q75": q75,
            "time_ms_samples": list(self.time_ms),
            "page_faults_samples": [round(x, 1) for x in self.page_faults],
            "page_faults_own": round(self.own_page_faults, 1) if self.page_faults else None,
            "n_disturbed": sum(_disturbed(*one, self.own_page_faults) for one in faults),
            "time_ms_per_sample": _divide(median, self.config.batch_size),
            "memory_bytes": self.memory_bytes,
            "memory_bytes_per_sample": _divide(self.memory_bytes, self.config.batch_size),
            "n_repeats": len(self.time_ms),
        }


def _disturbed(time_ms: float, faults: float, own: float) -> bool:
    """Whether page faults beyond a call's own may have taken a share of its time that matters."""
    return (faults - own) * FAULT_MS > FAULT_SHARE * time_ms


def _divide(value: float | None, by: int) -> float | None:
    return None if value is None else value / by


def _shape(config: CostConfig | TrainingConfig) -> tuple:
    """Everything but the mechanism: points of the same shape are timed together."""
    if isinstance(config, TrainingConfig):
        return (config.task, config.batch_size, config.precision)
    return astuple(replace(config, attention="softmax", options=None, kernel=None))


def tokens_batch(tokens: int, seq_len: int) -> int:
    """The batch size that keeps the tokens of a batch constant: max(1, tokens // N).

    Katharopoulos et al. 2020, Fig. 1, scale the batch inversely with N in the same way.
    """
    _check_at_least_one("tokens", tokens)
    _check_at_least_one("seq_len", seq_len)
    return max(1, tokens // seq_len)


def interleave(
    callables: dict[Key, Callable[[], object]],
    *,
    n_repeats: int = 7,
    seed: int = 0,
    device: str | torch.device = "cpu",
    stop: Stop = never,
    max_seconds: float | None = None,
) -> dict[Key, Samples]:
    """Time callables against each other, in milliseconds a call.

    Each round calls every callable once, in a new random order; those of LONG_CALL_MS and more have
    rounds of their own after the others', and what they freed then goes back to the system. A
    sample of a callable shorter than MIN_SAMPLE_MS is the mean of as many calls as last that long.
    Each is called untimed at first, and what then seems shorter than LONG_CALL_MS until time and
    page faults settle, and again before each sample until its page faults are its own alone. Time
    is `perf_counter` on the CPU and CUDA events on a GPU. TIMING_LOCK is held throughout.

    Args:
        n_repeats: rounds, and so samples of each callable.
        seed: of the order.
        stop: asked before every sample; once it is true, what was sampled is returned.
        max_seconds: bounds warm-up and rounds together, of which each kind of round has the share
            of its callables. A round that would not fit is left out, but the first never is.

    Returns:
        The samples of each callable; of those with the same rounds as many, unless it was stopped.

    Raises:
        ValueError: n_repeats or the device is out of range.
    """
    _check_at_least_one("n_repeats", n_repeats)
    device = resolve_device(device)
    rng = random.Random(seed)
    meters = {key: _Meter(function, device) for key, function in callables.items()}
    with _timing_lock(stop) as held:
        if held:
            _time_all(list(meters.values()), n_repeats, rng, stop, max_seconds)
    return {key: meter.samples for key, meter in meters.items()}


def _time_all(
    meters: list["_Meter"],
    n_repeats: int,
    rng: random.Random,
    stop: Stop,
    max_seconds: float | None,
) -> None:
    started, short, long = perf_counter(), [], []
    for meter in meters:
        if stop():
            return
        (short if meter.warm_up() < LONG_CALL_MS else long).append(meter)
    n_done = 0
    for some in filter(None, (short, long)):
        n_done += len(some)
        ends = math.inf if max_seconds is None else started + max_seconds * n_done / len(meters)
        _rounds(some, n_repeats, rng, stop, ends)
    if long:
        trim_memory()


def _rounds(
    meters: list["_Meter"], n_repeats: int, rng: random.Random, stop: Stop, ends: float
) -> None:
    """Sample each once a round, for as many rounds as end in time, but one at least."""
    n_calls, round_s = {meter: _calls_per_sample(meter.shortest_ms) for meter in meters}, 0.0
    for i_round in range(n_repeats):
        round_started = perf_counter()
        if i_round > 0 and round_started + round_s > ends:
            return
        rng.shuffle(meters)
        for meter in meters:
            if stop():
                return
            if meter.shortest_ms < LONG_CALL_MS:
                meter.warm_caches()
            time_ms, faults = meter.call(n_calls[meter])
            meter.samples.time_ms.append(time_ms)
            meter.samples.page_faults.append(faults)
        round_s = perf_counter() - round_started


class _Meter:
    """A callable on its way through `interleave`, with the best that was seen of it."""

    def __init__(self, function: Callable[[], object], device: torch.device):
        self.function, self.device = function, device
        self.samples, self.shortest_ms = Samples(), math.inf

    def call(self, n_calls: int = 1) -> tuple[float, float]:
        """Milliseconds and page faults a call."""
        before = page_faults()
        time_ms = _elapsed_ms(self.function, n_calls, self.device) / n_calls
        faults = (page_faults() - before) / n_calls
        self.shortest_ms = min(self.shortest_ms, time_ms)
        self.samples.own_page_faults = min(self.samples.own_page_faults, faults)
        return time_ms, faults

    def warm_up(self) -> float:
        """Call untimed, what is not long until it settles; the shortest time of a call."""
        self.call()
        for _ in range(MAX_WARMUPS):
            shortest_ms, fewest = self.shortest_ms, self.samples.own_page_faults
            if shortest_ms >= LONG_CALL_MS:
                break
            time_ms, faults = self.call()
            alike = max(time_ms, shortest_ms) <= SETTLED_TIME * min(time_ms, shortest_ms)
            if alike and not _disturbed(time_ms, abs(faults - fewest), 0):
                break
        return self.shortest_ms

    def warm_caches(self) -> None:
        """Call untimed until a call takes no page faults but its own."""
        for _ in range(MAX_WARMUPS):
            if not _disturbed(*self.call(), self.samples.own_page_faults):
                return


def _calls_per_sample(call_ms: float) -> int:
    # 1 us is the least that a Python call of a tensor operation takes.
    return max(1, math.ceil(MIN_SAMPLE_MS / max(call_ms, 1e-3)))


def _elapsed_ms(function: Callable[[], object], n_calls: int, device: torch.device) -> float:
    if device.type == "cuda":
        return _elapsed_cuda_ms(function, n_calls, device)
    started = perf_counter()
    for _ in range(n_calls):
        function()
    return (perf_counter() - started) * 1000


def _elapsed_cuda_ms(function: Callable[[], object], n_calls: int, device: torch.device) -> float:
    with torch.cuda.device(device):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        start.record()
        for _ in range(n_calls):
            function()
        end.record()
        torch.cuda.synchronize(device)
    return start.elapsed_time(end)


@contextmanager
def _timing_lock(stop: Stop) -> Iterator[bool]:
    """Hold TIMING_LOCK; False when told to stop while waiting for it."""
    held = TIMING_LOCK.acquire(blocking=False)
    while not held and not stop():
        held = TIMING_LOCK.acquire(timeout=LOCK_POLL_S)
    try:
        yield held
    finally:
        if held:
            TIMING_LOCK.release()


def measure_cost(
    configs: Iterable[CostConfig] | Iterable[TrainingConfig],
    *,
    n_repeats: int = 7,
    device: str | torch.device = "cpu",
    seed: int = 0,
    stop: Stop = never,
    max_seconds_per_point: float = 10.0,
) -> Iterator[Cost]:
    """Measure time and peak memory of each config, a group of the same shape at a time.

    The mechanisms of a group get the same random q, k, v and output gradient, are run once for
    their memory and then timed by `interleave`. "forward" runs without autograd. A mechanism
    that runs out of memory, or by `predicted_bytes` would, is a Cost with the outcome
    "out_of_memory"; the others go on.

    Args:
        seed: of q, k, v and of the order in which the group is timed.
        stop: once it is true, the group under way ends as "interrupted" with the samples it has,
            and no further group is begun.
        max_seconds_per_point: bounds the timing of a group, times the number of its members.

    Yields:
        A Cost a config, in the order of the configs within a group, groups in order of first
        appearance.

    Raises:
        ValueError: n_repeats or the device is out of range.
    """
    _check_at_least_one("n_repeats", n_repeats)
    device = resolve_device(device)
    groups: dict[tuple, list[CostConfig | TrainingConfig]] = {}
    for config in configs:
        groups.setdefault(_shape(config), []).append(config)
    going_on = takewhile(lambda _: not stop(), groups.values())
    return chain.from_iterable(
        measured_together(
            [Candidate(config, device, seed) for config in group],
            n_repeats,
            stop,
            max_seconds_per_point,
        )
        for group in going_on
    )


class Candidate:
    """A config on its way to a Cost: it becomes a shortage instead of raising out of memory."""

    def __init__(self, config: CostConfig | TrainingConfig, device: torch.device, seed: int):
        self.config, self.device, self.seed = config, device, seed
        self.work: Callable[[], object] | None = None
        self.memory_bytes: int | None = None
        self.shortage: str | None = None

    def prepare(self) -> None:
        """Build the work and run it once for its memory."""
        self._attempt(self._look_ahead)
        if self.shortage is None:
            self._attempt(self._build_and_trace)

    def _look_ahead(self) -> None:
        self.shortage = predicted_shortage(self.config, self.device)

    def _build_and_trace(self) -> None:
        self.work = _build_work(self.config, self.device, self.seed)
        self.memory_bytes = peak_memory_bytes(self.work, self.device)

    def __call__(self) -> None:
        if self.work is not None:
            self._attempt(self.work)

    def _attempt(self, function: Callable[[], object]) -> None:
        try:
            function()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            # The text alone is kept: the exception would hold the tensors of its frames.
            reason = str(error).strip().split("\n")[0] or "out of memory"
            self.shortage = f"{reason}: lower seq_len or batch_size"
            self.work = None
        if self.shortage is not None:
            release_memory(self.device)

    def cost(self, samples: Samples, n_repeats: int, interrupted: bool) -> Cost:
        """The Cost, once the samples are in."""
        if self.shortage is not None:
            return Cost(self.config, "out_of_memory", self.shortage, (), self.memory_bytes)
        outcome, detail, n_samples = "ok", None, len(samples.time_ms)
        if not n_samples or (interrupted and n_samples < n_repeats):
            outcome, detail = "interrupted", f"stopped after {n_samples} of {n_repeats} repeats"
        return Cost(
            self.config,
            outcome,
            detail,
            tuple(samples.time_ms),
            self.memory_bytes,
            tuple(samples.page_faults),
            samples.own_page_faults,
        )


def measured_together(
    candidates: Sequence[Candidate], n_repeats: int, stop: Stop, max_seconds_per_point: float
) -> list[Cost]:
    """The Cost of each of some candidates on one device, run once for its memory and then timed
    with the others."""
    for candidate in candidates:
        if not stop():
            candidate.prepare()
    runnable = {i: c for i, c in enumerate(candidates) if c.work is not None}
    samples: dict[int, Samples] = {}
    if runnable:
        first, most = candidates[0], max_seconds_per_point * len(runnable)
        options = {"seed": first.seed, "device": first.device, "stop": stop, "max_seconds": most}
        samples = interleave(runnable, n_repeats=n_repeats, **options)
    interrupted = stop()
    return [
        candidate.cost(samples.get(i, Samples()), n_repeats, interrupted)
        for i, candidate in enumerate(candidates)
    ]


def _build_work(
    config: CostConfig | TrainingConfig, device: torch.device, seed: int
) -> Callable[[], object]:
    if isinstance(config, TrainingConfig):
        return config.training(seed=seed, device=str(device)).train_step
    if hasattr(config, "work_on"):  # a kind of cost that knows what it times
        return config.work_on(device, seed)
    dtype = DTYPES[config.dtype]
    generator = torch.Generator(device=device).manual_seed(seed)
    shape = (config.batch_size, config.n_heads, config.seq_len, config.head_dim)

    def random_tensor() -> Tensor:
        return torch.randn(shape, generator=generator, dtype=dtype, device=device)

    q, k, v, grad_y = (random_tensor() for _ in range(4))  # each (B, H, N, D)
    attention = ATTENTION[config.attention].for_model(
        n_heads=config.n_heads,
        head_dim=config.head_dim,
        max_len=config.seq_len,
        options=config.options,
        kernel=config.kernel,
    )
    attention = attention.to(device=device, dtype=dtype).eval()
    inputs = [*(x.requires_grad_() for x in (q, k, v)), *attention.parameters()]

    def forward() -> Tensor:
        with torch.no_grad():
            return attention(q, k, v, causal=config.causal)

    def forward_backward() -> tuple[Tensor | None, ...]:
        y = attention(q, k, v, causal=config.causal)  # (B, H, N, D)
        return torch.autograd.grad(y, inputs, grad_y, allow_unused=True)

    return forward if config.work == "forward" else forward_backward


def predicted_shortage(config: CostConfig | TrainingConfig, device: torch.device) -> str | None:
    """Why a config would not fit into memory, or None when it is expected to."""
    return shortage(predicted_bytes(config, device), device)


def shortage(needed: float, device: torch.device) -> str | None:
    """Why so many bytes are not to be had; None where they are."""
    available = available_memory_bytes(device)
    if needed <= MEMORY_SHARE * available:
        return None
    return (
        f"needs about {needed / 1e9:.1f} GB, more than {MEMORY_SHARE:.0%} of the "
        f"{available / 1e9:.1f} GB free: lower seq_len or batch_size"
    )


def predicted_bytes(config: CostConfig | TrainingConfig, device: str | torch.device = "cpu") -> int:
    """About the memory that a call of attention, or a run's training, takes in all."""
    device = resolve_device(device)
    if isinstance(config, TrainingConfig):
        return _training_bytes(config, device)
    sizes = (config.batch_size, config.n_heads, config.seq_len, config.head_dim)
    inputs = 4 * math.prod(sizes) * DTYPES[config.dtype].itemsize  # q, k, v, the output gradient
    return inputs + call_bytes(config, device)


def call_bytes(config: CostConfig, device: torch.device) -> int:
    """About the memory that a call of attention takes beyond its inputs."""
    key = replace(config, seq_len=1, batch_size=1)
    return round(config.batch_size * at_length(config.seq_len, _call_bytes, key, device))


def at_length(n: int, measured: Callable[..., float], *arguments) -> float:
    """A quantity at a length N that `measured(*arguments, n)` gives at short ones."""
    if n <= TRACED_LENGTHS[-1]:
        return measured(*arguments, n)
    values = np.array([measured(*arguments, length) for length in TRACED_LENGTHS], dtype=float)
    powers = np.vander([*TRACED_LENGTHS, n], 3, increasing=True)
    return float(powers[-1] @ fitted(powers[:-1], values))


def fitted(rows: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The c of rows (k, 3), none below 0, with rows·c nearest to values (k,), relative to them."""
    rows, errors = rows / values[:, None], {}
    for kept in TERMS:
        found, _, rank, _ = np.linalg.lstsq(rows[:, kept], np.ones(len(rows)), rcond=None)
        if rank == len(kept) and (found >= 0).all():
            c = np.zeros(3)
            c[list(kept)] = found
            errors[tuple(c)] = np.square(rows @ c - 1).sum()
    return np.array(min(errors, key=errors.get))


@lru_cache(maxsize=4096)
def _call_bytes(config: CostConfig, device: torch.device, seq_len: int) -> int:
    """What a call of one sample adds to its inputs."""
    return traced_bytes(_build_work(replace(config, seq_len=seq_len), device, 0), device)


def _training_bytes(config: TrainingConfig, device: torch.device) -> int:
    kept = 12 * n_parameters(config)  # weights and two moments
    if kept > MEMORY_SHARE * available_memory_bytes(device):
        return kept
    key, n = trial(config), config.task.seq_len
    if resizable(config.task):
        forward = at_length(n, _forward_bytes, key, device)
    else:
        forward = _forward_bytes(key, device, n)
    # Going back, gradients take the place of what the forward pass has kept.
    return round(kept + max(kept / 3, config.trained.batch_size * forward))


def trial(config: TrainingConfig) -> TrainingConfig:
    """What is the same of all trainings that differ in their batch and steps."""
    changes = dict.fromkeys(("batch_size", "n_steps", "eval_every", "eval_batches"), 1)
    return replace(config, **changes, compile=False)


def resizable(task: Any) -> bool:
    """Whether a task can be given another length: images have one of their own."""
    return next(one for one in fields(task) if one.name == "seq_len").init


def at_size(config: TrainingConfig, batch_size: int, seq_len: int) -> TrainingConfig:
    """A training with another batch, and sequences of another length."""
    task = config.task
    if task.seq_len != seq_len:
        task = replace(task, seq_len=seq_len)
    return replace(config, task=task, batch_size=batch_size)


@lru_cache(maxsize=2)
def built(config: TrainingConfig, device: torch.device, thread: int) -> Training:
    """A training for a thread to try, whose `config` may be set to other sizes."""
    return config.training(device=str(device))


@lru_cache(maxsize=4096)
def _forward_bytes(config: TrainingConfig, device: torch.device, n: int) -> int:
    """What the forward pass of one sequence holds, with all that the backward pass needs of it."""
    training = built(config, device, get_ident())
    training.config, kept = at_size(training.config, 1, n), []
    batch = training.config.task.sample(1, training.data)
    training.model.train()

    def forward() -> None:
        kept.append(training.config.task.loss(training.model(*batch.inputs), batch))

    return traced_bytes(forward, device)
