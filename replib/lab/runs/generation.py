"""What it costs to generate, a token at a time: milliseconds and memory against the position.

B batch, N position of the token that is generated (the first is 1), L layers, H heads, D size per
head, E = H D model size.

The same weights generate in three ways: linear attention from its recurrent state, softmax from
its cache of keys and values (the paper's "stateful softmax", supplement), and softmax by computing
everything again for every token (the paper's softmax, tables 1 and 2).
"""

import math
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import ClassVar

import torch
from torch import Tensor

from replib import generation, models
from replib.checks import check_known
from replib.device import resolve_device
from replib.generation import MAX_BATCH, Decoder, Recompute, most_likely
from replib.lab import timing
from replib.lab.memory_use import TIMING_LOCK, is_out_of_memory, peak_memory_bytes, release_memory
from replib.lab.timing import DTYPES, Cost, Samples, Stop, never
from replib.models import CausalTransformer, TransformerConfig

# Training seeds torch's global generator while it builds a model, and a model built here meanwhile
# would draw from it.
from replib.training import _GLOBAL_GENERATOR_LOCK

WAYS = {"recurrent": "linear", "cache": "softmax", "recompute": "softmax"}
"""The ways to generate, each with its attention."""
SPANS = ("token", "sequence", "stream")
MAX_SEQ_LEN = 2**20  # as far as the long streams of the recorded runs go
VOCAB_SIZE = 256  # the levels of a pixel
FEEDFORWARD_PER_MODEL = 4  # the hidden size of the position-wise network, as in the paper
TOKEN_BYTES = 8  # int64

# A sample of a token lasts at least this long, as many as that takes one after the other: the first
# after another way finds the processor's caches full of that one's weights, unlike in a sequence.
TOKEN_SAMPLE_MS = 30.0
MAX_TOKENS_PER_SAMPLE = 256

# A stream is looked at this often: by a factor in position at first, then by a share of its length.
STREAM_FACTOR = 1.25
STREAM_SHARE = 0.01
STOP_EVERY = 64  # tokens


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """One figure: how a model of which sizes generates what.

    Attributes:
        way: a key of `WAYS`.
        span: "token" is the N-th token alone, "sequence" all of the first N, timed as one, and
            "stream" the same observed on its way, once.
        seq_len: N.

    Raises:
        ValueError: a value is unknown or out of range.
    """

    kind: ClassVar[str] = "generation"

    way: str = "recurrent"
    span: str = "token"
    seq_len: int = 784
    batch_size: int = 1
    n_layers: int = 8
    n_heads: int = 8
    head_dim: int = 32
    dtype: str = "float32"

    def __post_init__(self):
        check_known(self, way=WAYS, span=SPANS, dtype=DTYPES)
        for name, most in (("seq_len", MAX_SEQ_LEN), ("batch_size", MAX_BATCH)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
                raise ValueError(f"{name} {value!r}: use a whole number from 1 to {most}")
        _ = self.transformer

    @property
    def versions(self) -> dict[str, int]:
        """Of each part that the cost is of, by its name."""
        parts = {"models": models.VERSION, "generation": generation.VERSION}
        parts["speed of generation"] = generation.SPEED
        return parts | timing.timing_versions(self.attention, self.kernel)

    @property
    def attention(self) -> str:
        return WAYS[self.way]

    options: ClassVar[None] = None

    @property
    def kernel(self) -> str:
        """What computes it: a step of linear attention is its equation as it stands."""
        return "plain" if self.way == "recurrent" else "fused"

    @property
    def d_model(self) -> int:
        return self.n_heads * self.head_dim

    @property
    def transformer(self) -> TransformerConfig:
        return TransformerConfig(
            attention=self.attention,
            n_layers=self.n_layers,
            n_heads=self.n_heads,
            d_model=self.d_model,
            d_feedforward=FEEDFORWARD_PER_MODEL * self.d_model,
            dropout=0.0,
        )


@dataclass(frozen=True)
class GenerationCost(Cost):
    """`time_ms` is that of the token or of the whole sequence, of all B; `state_bytes` what is kept
    between two tokens, and `memory_bytes` that and what a step takes besides. A stream has a
    curve: position, ms_per_token since the last, state_bytes and process_bytes."""

    state_bytes: int | None = None
    curve: dict[str, list] | None = None

    def summary(self) -> dict:
        return super().summary() | {"state_bytes": self.state_bytes}


def build_model(
    config: GenerationConfig, device: str | torch.device = "cpu", seed: int = 0
) -> CausalTransformer:
    """The model with weights drawn from a seed: the same for every way, as no attention here has
    weights of its own."""
    max_len = 1 if config.span == "stream" else config.seq_len
    with _GLOBAL_GENERATOR_LOCK, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CausalTransformer(config.transformer, vocab_size=VOCAB_SIZE, max_len=max_len)
    return model.to(device=device, dtype=DTYPES[config.dtype]).eval().requires_grad_(False)


def build_stepper(config: GenerationConfig, device: str | torch.device = "cpu", seed: int = 0):
    """What generates in the way of a config, before its first token; the cache of a stream grows
    by doubling."""
    model = build_model(config, device, seed)
    if config.way == "recompute":
        return Recompute(model, config.batch_size, max_len=config.seq_len)
    max_len = None if config.span == "stream" else config.seq_len
    return Decoder(model, config.batch_size, max_len=max_len)


def state_bytes(config: GenerationConfig) -> int:
    """What must be kept to generate token N + 1, in bytes.

    recurrent: L B H (D² + D) sums, in float32 or wider (Katharopoulos et al. 2020, eq. 18-19);
    cache: 2 L B H N D; recompute: the B N tokens.
    """
    dtype, d = DTYPES[config.dtype], config.head_dim
    heads = config.n_layers * config.batch_size * config.n_heads
    if config.way == "recurrent":
        return heads * (d * d + d) * torch.promote_types(dtype, torch.float32).itemsize
    if config.way == "cache":
        return heads * 2 * config.seq_len * d * dtype.itemsize
    return config.batch_size * config.seq_len * TOKEN_BYTES


def geometric_positions(last: int) -> list[int]:
    """last, last / 2, last / 4, ... 1 in whole numbers, rising."""
    if last < 1:
        raise ValueError(f"last position {last}: use at least 1")
    return sorted({last >> i for i in range(last.bit_length())})


def measure_generation(
    configs: Iterable[GenerationConfig],
    *,
    n_repeats: int = 7,
    device: str | torch.device = "cpu",
    seed: int = 0,
    stop: Stop = never,
    max_seconds_per_point: float = 10.0,
    on_partial: Callable[[GenerationCost], None] = lambda cost: None,
) -> Iterator[GenerationCost]:
    """Measure generation; all tokens and sequences of the configs are timed together, so give the
    ways of one size. A way for which memory runs out, or would, is a Cost with that outcome.

    The N-th token is generated again and again from a state that is filled at random; a sample is
    the mean of as many as last TOKEN_SAMPLE_MS.

    Args:
        max_seconds_per_point: bounds the timing, times the number of configs; of streams nothing.
        on_partial: told of a stream on its way, as if it were stopped now.

    Raises:
        ValueError: n_repeats or the device is out of range.
    """
    device, configs = resolve_device(device), list(configs)
    together = [config for config in configs if config.span != "stream"]
    candidates = [_Candidate(config, device, seed) for config in together]
    yield from timing.measured_together(candidates, n_repeats, stop, max_seconds_per_point)
    for config in configs:
        if config.span == "stream" and not stop():
            yield _measure_stream(config, device, seed, stop, on_partial)


class _Candidate(timing.Candidate):
    """A config on its way to a GenerationCost."""

    state_bytes: int | None = None
    tokens_per_sample = 1

    def _look_ahead(self) -> None:
        self.shortage = predicted_shortage(self.config, self.device)

    def _build_and_trace(self) -> None:
        kind = _NextToken if self.config.span == "token" else _WholeSequence
        self.work = kind(self.config, self.device, self.seed)
        self.state_bytes = self.work.stepper.state_bytes
        if self.config.span == "token":
            self.memory_bytes = self.state_bytes + peak_memory_bytes(self.work.step, self.device)
            token_ms = timing._elapsed_ms(self.work.step, 1, self.device)
            wanted = math.ceil(TOKEN_SAMPLE_MS / token_ms)
            self.work.n_tokens = self.tokens_per_sample = min(wanted, MAX_TOKENS_PER_SAMPLE)

    def cost(self, samples: Samples, n_repeats: int, interrupted: bool) -> GenerationCost:
        n = self.tokens_per_sample
        samples = Samples(
            [time_ms / n for time_ms in samples.time_ms],
            [faults / n for faults in samples.page_faults],
            samples.own_page_faults / n,
        )
        cost = super().cost(samples, n_repeats, interrupted)
        return GenerationCost(**vars(cost), state_bytes=self.state_bytes)


class _NextToken:
    """The N-th token of each sequence, `n_tokens` times a call."""

    n_tokens = 1

    def __init__(self, config: GenerationConfig, device: torch.device, seed: int):
        self.stepper, self.before = build_stepper(config, device, seed), config.seq_len - 1
        generator = torch.Generator(device).manual_seed(seed)
        self.stepper.jump(self.before, generator)
        self.token = torch.zeros(config.batch_size, dtype=torch.int64, device=device)
        self.states = list(getattr(self.stepper, "states", ()))
        # Under a CUDA graph a cache counts in tensors.
        self.lengths = [
            x for state in self.states for x in state if isinstance(x, Tensor) and x.dim() == 0
        ]

    def __call__(self) -> None:
        for _ in range(self.n_tokens):
            self.step()

    @torch.inference_mode()
    def step(self) -> None:
        self.stepper.position = self.before
        if self.states:
            self.stepper.states = list(self.states)
        if self.lengths:
            torch._foreach_zero_(self.lengths)
            torch._foreach_add_(self.lengths, self.before)
        most_likely(self.stepper.step(self.token))


class _WholeSequence:
    """All N tokens of each sequence, each the most likely one after the last."""

    def __init__(self, config: GenerationConfig, device: torch.device, seed: int):
        self.stepper, self.n_tokens = build_stepper(config, device, seed), config.seq_len
        self.first = torch.zeros(config.batch_size, dtype=torch.int64, device=device)

    def __call__(self) -> None:
        self.stepper.jump(0)
        token = self.first
        for _ in range(self.n_tokens):
            token = most_likely(self.stepper.step(token))


def predicted_shortage(config: GenerationConfig, device: torch.device) -> str | None:
    """Why a config would not fit into memory, or None when it is expected to."""
    return timing.shortage(predicted_bytes(config), device)


def predicted_bytes(config: GenerationConfig) -> int:
    """About the memory that a step takes in all: weights, state and what it computes with."""
    e, itemsize = config.d_model, DTYPES[config.dtype].itemsize
    weights = config.n_layers * 12 * e * e * itemsize
    n = config.seq_len if config.way == "recompute" else 1
    # While a cache is doubled there is the old one and one of up to twice the size needed.
    copies = 3 if config.span == "stream" and config.way == "cache" else 1
    active = config.batch_size * n * (2 * FEEDFORWARD_PER_MODEL + 6) * e * itemsize
    return weights + copies * state_bytes(config) + active


def _measure_stream(
    config: GenerationConfig,
    device: torch.device,
    seed: int,
    stop: Stop,
    on_partial: Callable[[GenerationCost], None],
) -> GenerationCost:
    if shortage := predicted_shortage(config, device):
        return GenerationCost(config, "out_of_memory", shortage, (), None)
    points: list[dict] = []
    try:
        for point in stream_points(config, device, seed, stop):
            points.append(point)
            on_partial(_stream_cost(config, "interrupted", points))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        release_memory(device)
        return _stream_cost(config, "out_of_memory", points, str(error).split("\n")[0])
    ended = bool(points) and points[-1]["position"] == config.seq_len
    return _stream_cost(config, "ok" if ended else "interrupted", points)


def _stream_cost(config, outcome, points, detail=None) -> GenerationCost:
    curve = {name: [point[name] for point in points] for name in (points[0] if points else ())}
    ends = [0, *curve.get("position", ())]
    each_ms = zip(curve.get("ms_per_token", ()), pairwise(ends), strict=True)
    total_ms = sum(ms * (end - before) for ms, (before, end) in each_ms)
    if outcome == "interrupted":
        detail = f"stopped after {ends[-1]} tokens"
    kept = points[-1]["state_bytes"] if points else None
    return GenerationCost(config, outcome, detail, (total_ms,), None, state_bytes=kept, curve=curve)


def stream_points(
    config: GenerationConfig, device: str | torch.device = "cpu", seed: int = 0, stop: Stop = never
) -> Iterator[dict[str, float | int | None]]:
    """Generate N tokens, and say now and then how it goes: position, ms_per_token since the last
    time, state_bytes (measured) and process_bytes."""
    device = resolve_device(device)
    stepper = build_stepper(config, device, seed)
    token = torch.zeros(config.batch_size, dtype=torch.int64, device=device)
    for first, last in pairwise([0, *stream_positions(config.seq_len)]):
        with TIMING_LOCK:
            started = perf_counter()
            for i in range(first, last):
                if i % STOP_EVERY == 0 and stop():
                    return
                token = most_likely(stepper.step(token))
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            elapsed_ms = (perf_counter() - started) * 1000
        yield {
            "position": last,
            "ms_per_token": elapsed_ms / (last - first),
            "state_bytes": stepper.state_bytes,
            "process_bytes": process_bytes(device),
        }


def stream_positions(last: int) -> list[int]:
    """Where a stream is looked at: by a factor at first, then evenly, and at its end."""
    positions, at = [], 1
    while at < last:
        positions.append(at)
        at += max(1, min(round(at * (STREAM_FACTOR - 1)), round(last * STREAM_SHARE)))
    return [*positions, last]


def process_bytes(device: str | torch.device = "cpu", statm: Path = Path("/proc/self/statm")):
    """The memory of this whole process: resident on the CPU, allocated by torch on CUDA; None where
    the system does not tell (not Linux)."""
    device = resolve_device(device)
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    try:
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError, AttributeError):
        return None
