"""How long a job will take, from a few calls of what it is made of.

n is a length (of sequences, of a cache, or a number of keys), b a batch or a number of seeds.

A job's parts (a step, an evaluation, a call of attention, a token) are called a few times at a
small size and then at larger ones, up to the size that was asked for or until the time for it is
spent; a size that was not reached is taken from

    seconds = c0 + b (c1 n + c2 n²),   c0, c1, c2 >= 0,

fitted to those that were. What has been measured is kept for the process: the same part at another
size is a look-up, or a few calls more.
"""

import math
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from time import perf_counter

import numpy as np
import torch

from replib.attention import ATTENTION
from replib.attention.kernels import installed
from replib.device import resolve_device
from replib.fast_weights import RetrievalConfig, RetrievalTraining
from replib.lab import timing
from replib.lab.memory_use import TIMING_LOCK, traced_bytes
from replib.lab.run import BASES, Config, Job, kind_of
from replib.lab.runs import generation
from replib.lab.runs.generation import TOKEN_SAMPLE_MS, GenerationConfig
from replib.lab.runs.retrieval import TYPICAL_STEPS
from replib.lab.timing import MIN_SAMPLE_MS, CostConfig
from replib.training import TrainingConfig

BUDGET_S = 0.4  # for all that a prediction measures
SHORTEST, FEWEST_KEYS = 32, 8  # the size to begin with
WAIT_S = 0.3  # for another timing to end; after that a prediction is from what is known
CALLS = 6  # one untimed, two alone, and pairs
DISTURBED_S = 5.0  # a longer call is believed at once
Size = tuple[int, int]
"""n and b."""


@dataclass
class Part:
    """What is called again and again: seconds of a call, at the sizes measured so far, and those
    that were asked for, whose prediction stays what it was."""

    seconds: dict[Size, float] = field(default_factory=dict)
    asked: set[Size] = field(default_factory=set)

    def at(self, n: int, b: int) -> float:
        """Seconds of a call; NaN where nothing has been measured."""
        return self.seconds.get((n, b)) or (_terms([(n, b)]) @ self.coefficients).item()

    def up_to(self, n: int, b: int) -> float:
        """Seconds of a call at each length from 1 to n."""
        c0, c1, c2 = self.coefficients
        return n * (c0 + b * (c1 * n / 2 + c2 * n * n / 3))

    @property
    def coefficients(self) -> np.ndarray:
        """c0, c1 and c2, none below 0, of the least relative errors."""
        times = np.array([*self.seconds.values()])
        if len(times) < 2:  # all of it grows as b n
            found = (times / _terms([*self.seconds])[:, 1]).item() if len(times) else math.nan
            return np.array([0.0, found, 0.0])
        return timing.fitted(_terms([*self.seconds]), times)

    def covers(self, n: int, b: int) -> bool:
        """Whether a size as large has been asked for or measured without a disturbance, or, beside
        another, one of half the length: a reader who moves a slider does not wait."""
        known = [*self.seconds, *self.asked]
        if len(self.seconds) > 1:
            widest = max(size[1] for size in known)
            known += [(2 * size[0], widest) for size in self.seconds]
        return not self.disturbed and any(size[0] >= n and size[1] >= b for size in known)

    @property
    def disturbed(self) -> bool:
        """Whether one size alone was measured, although its calls are short: other programs took
        the time, and it is to be measured again."""
        others = self.asked - self.seconds.keys()
        return len(self.seconds) == 1 and bool(others) and min(self.seconds.values()) < BUDGET_S

    def measure(self, use: "Use", budget_s: float, device: torch.device) -> None:
        """Call it at sizes that grow up to that of a use, two unless it is slow, as long as the
        next would end in time. To build it is not counted, nor is the first call, which loads what
        it needs."""
        if self.disturbed:
            self.seconds.clear()
        size, left_s = self._first(use), budget_s
        self.asked.add(use.size)
        while size not in self.seconds:
            call = use.build(*size)
            if not self.seconds:
                call()
            started = perf_counter()
            self.seconds[size] = _seconds(call, started + left_s, device)
            left_s -= perf_counter() - started
            factor = left_s / (CALLS * self.seconds[size])
            if len(self.seconds) == 1 and self.seconds[size] < BUDGET_S / 8:
                factor = max(factor, 8)
            size = _grown(size, use.size, factor)

    def _first(self, use: "Use") -> Size:
        """A size that is measured next: a small one, or one beyond the largest that has been."""
        n, b = use.size
        known = [size for size in self.seconds if size[0] <= n and size[1] <= b]
        if not known:
            return min(use.smallest[0], n), min(use.smallest[1], b)
        largest = max(known, key=_weight)
        return _grown(largest, use.size, BUDGET_S / (2 * CALLS * self.seconds[largest]))


def _weight(size: Size) -> int:
    return size[0] ** 2 * size[1]


def _terms(sizes: Sequence[Size]) -> np.ndarray:
    n, b = np.array(sizes, dtype=float).T
    return np.stack([np.ones_like(n), b * n, b * n * n], axis=1)


def _grown(size: Size, largest: Size, factor: float) -> Size:
    """A size of at most `factor` times the time, which grows as n² b or slower."""
    (n, b), (most_n, most_b) = size, largest
    if factor >= (most_n / n) ** 2 * most_b / b:
        return largest
    while factor >= 4 and 2 * n <= most_n:
        n, factor = 2 * n, factor / 4
    while factor >= 2 and 2 * b <= most_b:
        b, factor = 2 * b, factor / 2
    return n, b


def _seconds(call: Callable[[], object], ends: float, device: torch.device) -> float:
    """Of a call, the best of two, and of two pairs where there is time for them."""
    found = timing._elapsed_ms(call, 1, device) / 1000
    if found < DISTURBED_S:  # one alone may have been another program's
        found = min(found, timing._elapsed_ms(call, 1, device) / 1000)
    for _ in range(2):
        if perf_counter() + 2 * found > ends:
            break
        found = min(found, timing._elapsed_ms(call, 2, device) / 2000)
    return found


_parts: dict[Hashable, Part] = {}
_LOCK = threading.Lock()  # of the dictionary, and of what its parts hold


@dataclass(frozen=True)
class Use:
    """How often a job calls a part, and at which size.

    Attributes:
        key: of the part: all that it is but for its sizes.
        build: (n, b) -> the call.
        smallest: the size to begin with.
        seconds: (part, size) -> what the job spends on it in all.
    """

    key: Hashable
    build: Callable[[int, int], Callable[[], object]]
    smallest: Size
    size: Size
    seconds: Callable[[Part, Size], float]


def seconds(
    jobs: Sequence[Job],
    device: str | torch.device | None = None,
    *,
    max_seconds_per_point: float = 10.0,
    threads: Callable[[Job], int] = lambda job: torch.get_num_threads(),
) -> float:
    """About how long jobs take, in seconds; to be called in a thread of its own, as it computes
    with as many threads as the jobs will. NaN where another timing runs, and nothing is known yet.

    A cost that would not fit into memory takes none.
    """
    device = resolve_device(device)
    found = [
        (use, threads(job)) for job in jobs for use in _uses(job, device, max_seconds_per_point)
    ]
    with _LOCK:
        _measure(found, device)
        return sum(use.seconds(_parts[use.key, n], use.size) for use, n in found)


def calls(
    configs: Sequence[CostConfig],
    device: str | torch.device | None = None,
    *,
    threads: int,
    measure: bool,
) -> list[float]:
    """Seconds of a call of attention of each config, by what has been measured so far and, where
    `measure`, by what `seconds` would measure; NaN of one of which nothing is known."""
    device = resolve_device(device)
    found = [(_call(config, device), threads) for config in configs]
    with _LOCK:
        if measure:
            _measure(found, device)
        return [_parts.get((use.key, threads), Part()).at(*use.size) for use, _ in found]


def _measure(found: Sequence[tuple[Use, int]], device: torch.device) -> None:
    """Call each part at sizes up to the largest that is asked for."""
    largest: dict[Hashable, Use] = {}
    for use, n_threads in found:
        key = (use.key, n_threads)
        if not _parts.setdefault(key, Part()).covers(*use.size):
            largest[key] = max(use, largest.get(key, use), key=lambda one: _weight(one.size))
    if not largest or not TIMING_LOCK.acquire(timeout=WAIT_S):
        return
    before, share = torch.get_num_threads(), BUDGET_S / len(largest)
    try:
        for key, use in largest.items():
            torch.set_num_threads(key[1])
            _parts[key].measure(use, share, device)
        for use, n_threads in found:  # the largest is measured, the others are known by it
            _parts[use.key, n_threads].asked.add(use.size)
    finally:
        torch.set_num_threads(before)
        TIMING_LOCK.release()


def _uses(job: Job, device: torch.device, max_seconds_per_point: float) -> Iterator[Use]:
    if job.timed:
        for config in job.configs:
            yield from _cost(config, job.n_repeats, device, max_seconds_per_point)
    elif job.kind == "training":
        yield from _training(job.config, device)
    else:
        yield from _retrieval(job.config, len(job.seeds), device)


def _training(config: TrainingConfig, device: torch.device) -> Iterator[Use]:
    if config.missing_data():
        return
    n_steps, n_evaluations = config.n_steps, math.ceil(config.n_steps / config.eval_every)
    for part, times in (("step", n_steps), ("evaluation", n_evaluations * config.eval_batches)):
        yield _part_of_training(config, device, part, lambda s, times=times: times * s)


def _part_of_training(config: TrainingConfig, device, part: str, total) -> Use:
    size = (config.task.seq_len, config.trained.batch_size)
    whole = timing.trial(config)
    least = SHORTEST if timing.resizable(config.task) else config.task.seq_len
    key = ("training", part, timing.at_size(whole, 1, least), str(device))

    def build(n: int, b: int) -> Callable[[], object]:
        training = timing.built(ready(whole, device), device, threading.get_ident())
        training.config = timing.at_size(training.config, b, n)
        return training.train_step if part == "step" else training.evaluate

    return Use(key, build, (least, 1), size, lambda p, s: total(p.at(*s)))


def _retrieval(config: RetrievalConfig, n_seeds: int, device: torch.device) -> Iterator[Use]:
    n_steps = min(config.n_steps, TYPICAL_STEPS)
    size = (config.task.n_keys, n_seeds)
    whole = replace(config, n_steps=1, eval_every=1)
    for part, times in (("train_step", n_steps), ("evaluate", n_steps / config.eval_every)):

        def build(n: int, b: int, part=part) -> Callable[[], object]:
            run = RetrievalTraining(with_keys(whole, n), seeds=range(b), device=str(device))
            return getattr(run, part)

        key = ("retrieval", part, with_keys(whole, FEWEST_KEYS), str(device))
        total = lambda p, s, times=times: times * p.at(*s)  # noqa: E731
        yield Use(key, build, (FEWEST_KEYS, 1), size, total)


def with_keys(config: RetrievalConfig, n: int) -> RetrievalConfig:
    """The same with another number of keys."""
    if n == config.task.n_keys:
        return config
    return replace(config, task=replace(config.task, n_keys=n, seq_len=None))


def _cost(
    config: Config, n_repeats: int, device: torch.device, max_seconds_per_point: float
) -> Iterator[Use]:
    def timed(call_s: float) -> float:
        """Once for its memory, twice to warm up, and n_repeats samples, each after an untimed call,
        or until the time is up."""
        sample_s = call_s + max(call_s, MIN_SAMPLE_MS / 1000)
        return 3 * call_s + min(n_repeats * sample_s, max(max_seconds_per_point, sample_s))

    kind = BASES[kind_of(config, cost=True)]
    if kind == "step":
        yield _part_of_training(
            config,
            device,
            "step",
            lambda s: 2 * s + min(2 * n_repeats * s, max(max_seconds_per_point, 2 * s)),
        )
    elif kind == "cost":
        if timing.predicted_shortage(ready(config, device), device) is None:
            yield _call(config, device, lambda p, s: timed(p.at(*s)))
    elif generation.predicted_shortage(config, device) is None:
        yield _generated(config, device, timed)


def _call(config: CostConfig, device: torch.device, total=lambda p, s: p.at(*s)) -> Use:
    """A call of attention, which takes as long for a head more as for a sequence more."""
    key = ("cost", replace(config, seq_len=1, batch_size=1, n_heads=1), str(device))

    def build(n: int, b: int) -> Callable[[], object]:
        some = replace(ready(config, device), seq_len=n, batch_size=b, n_heads=1)
        return timing._build_work(some, device, 0)

    size = (config.seq_len, config.batch_size * config.n_heads)
    return Use(key, build, (SHORTEST, 1), size, total)


def _generated(config: GenerationConfig, device: torch.device, timed) -> Use:
    size, span = (config.seq_len, config.batch_size), config.span
    key = ("token", replace(config, span="token", seq_len=1, batch_size=1), str(device))

    def build(n: int, b: int) -> Callable[[], object]:
        some = replace(config, span="token", seq_len=n, batch_size=b)
        return generation._NextToken(some, device, 0).step

    def total(part: Part, size: Size) -> float:
        if span == "token":
            return timed(max(part.at(*size), TOKEN_SAMPLE_MS / 1000))  # as many as last so long
        return part.up_to(*size) if span == "stream" else timed(part.up_to(*size))

    return Use(key, build, (SHORTEST, 1), size, total)


def ready(config: Config, device: torch.device) -> Config:
    """The config on kernels that need not be compiled first, which takes a quarter of a minute: on
    those of torch where the ones that it would take have not been compiled on this machine."""
    model = getattr(config, "model", config)
    asked = device.type == "cpu" and model.kernel in (None, "cpu")
    if not asked or _compiled(model.attention):
        return config
    mechanism = ATTENTION[model.attention]
    changes = {"kernel": "torch"}
    if "torch" not in mechanism.kernels:  # it takes those of linear attention
        changes |= {"attention": "linear", "options": None}
    if model is config:
        return replace(config, **changes)
    return replace(config, model=replace(model, **changes))


def _compiled(attention: str) -> bool:
    if attention in ("softmax", "lsh", "fwm") or not installed("numba"):
        return True
    from replib import kernels
    from replib.kernels.delta import cpu

    return kernels.compiled("cpu") and (attention != "delta" or cpu.KERNEL.compiled())


def needed_bytes(jobs: Sequence[Job], device: str | torch.device | None = None) -> float:
    """About the memory that the largest training among jobs takes in all; a cost that does not fit
    becomes a row that says so. 0 while another timing runs."""
    kind, found = resolve_device(device), [0.0]
    if not TIMING_LOCK.acquire(timeout=WAIT_S):
        return 0.0
    try:
        for job in jobs:
            if job.kind == "training" and not job.config.missing_data():
                found.append(timing.predicted_bytes(job.config, kind))
            elif job.kind == "retrieval":
                config = replace(job.config, n_steps=1)
                n_keys = config.task.n_keys
                found.append(len(job.seeds) * timing.at_length(n_keys, _traced, config, kind))
    finally:
        TIMING_LOCK.release()
    return max(found)


@lru_cache(maxsize=4096)
def _traced(config: RetrievalConfig, device: torch.device, n_keys: int) -> int:
    """What one seed takes: weights, moments, and what a step adds."""
    run = RetrievalTraining(with_keys(config, n_keys), device=str(device))
    run.train_step()
    kept = 12 * sum(x.numel() for x in run.model.parameters())
    return kept + traced_bytes(run.train_step, device)
