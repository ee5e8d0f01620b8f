"""What it takes to train, and to attend, over ranks: time, its share that is communication, and the
peak memory of each process.

B batch, H heads, N sequence length, D size per head, W ranks. Functions that begin with `of_this`
are called in every process of `replib.parallel.run_processes`.
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from statistics import median
from typing import Any

import torch
from torch import Tensor

from replib import files
from replib.attention import ATTENTION, Attention
from replib.lab.memory_use import peak_memory_bytes
from replib.lab.text import markdown_table
from replib.models import CausalTransformer, TransformerConfig
from replib.parallel import WAYS, Ranks, SequenceParallel, VirtualRanks, attend, run_processes
from replib.parallel.cost import Layer, Link
from replib.parallel.model import WRITES, local_state_of, output_of
from replib.parallel.ranks import boundaries
from replib.tasks import CausalCopy

try:
    import resource
except ImportError:  # Windows
    resource = None

RECORDED = (
    files.ROOT / "data" / "parallel.json"
)  # written by `python -m benchmarks.parallel --save`
PING_BYTES, PINGS = (8, 2**22), 21  # for the latency, and for the bandwidth
RECORDED_HEAD = (
    "run",
    "N",
    "peak, tensors of a step",
    "peak, process",
    "a step",
    "processor time",
    "communication",
    "sent a step",
)
UNTIMED = 2  # first steps, which meet an empty cache and compile kernels


@dataclass(frozen=True, kw_only=True)
class CopyOverRanks:
    """Training on the copy task (Katharopoulos et al. 2020, section 4.1) for a few steps of a small
    model, a batch of one sequence."""

    attention: str = "linear"
    seq_len: int = 65_536
    n_steps: int = 8
    n_layers: int = 2
    n_heads: int = 4
    d_model: int = 64
    lr: float = 3e-3
    seed: int = 0

    @property
    def task(self) -> CausalCopy:
        return CausalCopy(seq_len=self.seq_len)

    @property
    def model(self) -> TransformerConfig:
        return TransformerConfig(
            attention=self.attention,
            n_layers=self.n_layers,
            n_heads=self.n_heads,
            d_model=self.d_model,
            d_feedforward=2 * self.d_model,
            norm="pre",
            dropout=0.0,
        )

    @property
    def layer(self) -> Layer:
        """What of a layer travels."""
        mechanism = mechanism_of(self.attention, self.n_heads, self.model.head_dim)
        return layer_of(mechanism, self.n_heads, self.model.head_dim)


def mechanism_of(name: str, n_heads: int, head_dim: int) -> Attention:
    return ATTENTION[name].for_model(n_heads=n_heads, head_dim=head_dim, max_len=1)


def layer_of(mechanism: Attention, n_heads: int, head_dim: int) -> Layer:
    """What of a mechanism travels, of a batch of one."""
    writes = tuple(ATTENTION[name] for name in WRITES)
    return Layer(
        rule="delta" if isinstance(mechanism, writes) else "sum",
        n_heads=n_heads,
        n_features=mechanism.n_features(head_dim),
        value_dim=head_dim,
    )


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What one process found.

    Attributes:
        losses: of the whole sequence, before each step, nats a token.
        step_s, cpu_s: medians of a step, by the clock and of this process's processor time.
        scan_s: of a step, in scans: sending, receiving and waiting for other ranks.
        gradient_s: of a step, in the sum of gradients.
        sent_bytes: in scans of a step.
        tensor_bytes: the most that tensors of a step take beyond those before it.
        process_bytes: the most that the process has taken so far; 0 where it is not told.
    """

    losses: tuple[float, ...]
    step_s: float
    cpu_s: float
    scan_s: float
    gradient_s: float
    sent_bytes: int
    tensor_bytes: int
    process_bytes: int


def of_this_rank(run: CopyOverRanks, way: str | None) -> Trained:
    """Train this process's part; without a way all of it, as one device does, without ranks."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.seed)
        model = CausalTransformer(run.model, **run.task.model_sizes)
    optimizer = torch.optim.AdamW(model.parameters(), lr=run.lr)
    data = torch.Generator().manual_seed(run.seed + 1)
    over = SequenceParallel(model, WAYS[way]() if way else VirtualRanks(1))
    traffic, took = over.ranks.traffic, []

    def step() -> Tensor:
        batch = run.task.sample(1, data)
        optimizer.zero_grad(set_to_none=True)
        if way is None:
            loss = run.task.loss(model(*batch.inputs), batch)
        else:
            loss = over.loss(over(*batch.inputs), batch.targets, batch.in_loss)
        loss.backward()
        began = time.perf_counter()
        if way is not None:
            over.sum_gradients()
        took.append(time.perf_counter() - began)
        optimizer.step()
        return over.ranks.total(loss.detach())

    losses, clocks, scans = [], [], []
    for _ in range(run.n_steps):
        traffic.reset()
        began = time.perf_counter(), time.process_time()
        losses.append(step().item())
        ended = time.perf_counter(), time.process_time()
        clocks.append([b - a for a, b in zip(began, ended, strict=True)])
        scans.append(traffic.seconds)
    sent, process_bytes = traffic.sent_bytes, _process_bytes()
    step_s, cpu_s = (median(column) for column in zip(*clocks[UNTIMED:], strict=True))
    return Trained(
        losses=tuple(losses),
        step_s=step_s,
        cpu_s=cpu_s,
        scan_s=median(scans[UNTIMED:]),
        gradient_s=median(took[UNTIMED:]),
        sent_bytes=sent,
        tensor_bytes=peak_memory_bytes(step),
        process_bytes=process_bytes,
    )


def _process_bytes() -> int:
    """The most that this process has taken so far (Linux counts it in units of 1024)."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss if resource else 0


def of_this_end() -> Link:
    """The link between the first two ranks, by messages that come back."""
    from torch import distributed

    rank, seconds = distributed.get_rank(), []
    for n_bytes in PING_BYTES:
        x, took = torch.zeros(n_bytes, dtype=torch.uint8), []
        for _ in range(PINGS):
            began = time.perf_counter()
            for sender in (0, 1):
                if rank == sender:
                    distributed.send(x, 1 - sender)
                else:
                    distributed.recv(x, sender)
            took.append((time.perf_counter() - began) / 2)
        seconds.append(min(took))  # what a machine with other work to do can, when it does not
    latency_s, large_s = seconds
    return Link(
        latency_s=latency_s,
        bandwidth=PING_BYTES[1] / max(large_s - latency_s, 1e-9),
    )


def measured_link() -> Link:
    """That between two processes of this machine, by gloo."""
    return run_processes(of_this_end, 2)[0]


@dataclass(frozen=True, kw_only=True)
class AttentionOverRanks:
    """Attention of one layer, forward and backward, on random numbers, a batch of one."""

    attention: str = "linear"
    seq_len: int = 16_384
    n_heads: int = 8
    head_dim: int = 64
    n_repeats: int = 5

    @property
    def mechanism(self) -> Attention:
        return mechanism_of(self.attention, self.n_heads, self.head_dim)

    @property
    def layer(self) -> Layer:
        return layer_of(self.mechanism, self.n_heads, self.head_dim)

    def inputs(self, n: int) -> list[Tensor]:
        """q, k and v of n positions."""
        generator = torch.Generator().manual_seed(0)
        shape = 1, self.n_heads, n, self.head_dim
        return [torch.randn(shape, generator=generator) for _ in range(3)]


@dataclass(frozen=True, kw_only=True)
class Attended:
    """Medians of a call in one process: seconds of all of it, of its scans, and bytes sent."""

    total_s: float
    scan_s: float
    sent_bytes: int


def attended(run: AttentionOverRanks, ranks: Ranks | None) -> Attended:
    """Attend to the part of this process; without ranks to all of the sequence, as one device."""
    part = ranks.part(run.seq_len) if ranks else slice(0, run.seq_len)
    q, k, v = (x.requires_grad_() for x in run.inputs(part.stop - part.start))
    mechanism, took, scans, sent = run.mechanism, [], [], 0
    for _ in range(UNTIMED + run.n_repeats):
        if ranks:
            ranks.total(torch.zeros(()))  # that all begin together
            ranks.traffic.reset()
        began = time.perf_counter()
        y = attend(mechanism, q, k, v, ranks) if ranks else mechanism(q, k, v)
        torch.autograd.grad(y.sum(), (q, k, v))
        took.append(time.perf_counter() - began)
        scans.append(ranks.traffic.seconds if ranks else 0.0)
        sent = ranks.traffic.sent_bytes if ranks else 0
    total_s, scan_s = (median(x[UNTIMED:]) for x in (took, scans))
    return Attended(total_s=total_s, scan_s=scan_s, sent_bytes=sent)


@dataclass(frozen=True, kw_only=True)
class PartTimes:
    """Seconds a token that a part of a sequence takes by itself, forward: until what it does to a
    state is known, and to read with the state before it."""

    local_s: float
    output_s: float


def part_times(run: AttentionOverRanks, size: int) -> PartTimes:
    """Of virtual ranks, the medians of all parts, which are worked on one after the other: seconds
    of processor time, which other programs change least, so in a process with one thread."""
    mechanism, local, read = run.mechanism, [], []
    with torch.no_grad():
        qkv = run.inputs(run.seq_len)
        parts = [[x[:, :, a:b] for x in qkv] for a, b in pairwise(boundaries(run.seq_len, size))]
        effects = [local_state_of(mechanism, *part) for part in parts]
        for part, s in zip(parts, VirtualRanks(size).scan(effects), strict=True):
            n = run.n_repeats * part[0].shape[2]
            local.append(_processor_s(partial(local_state_of, mechanism, *part), run) / n)
            read.append(_processor_s(partial(output_of, mechanism, s, *part), run) / n)
    return PartTimes(local_s=median(local), output_s=median(read))


def _processor_s(call: Callable[[], object], run: AttentionOverRanks) -> float:
    """Of all repeats, after one that is not counted."""
    call()
    began = time.process_time()
    for _ in range(run.n_repeats):
        call()
    return time.process_time() - began


@dataclass(frozen=True, kw_only=True)
class Compared:
    """What two or more processes found of the same attention: each by each way, and the first,
    while the others waited, alone, and of so many virtual ranks."""

    ways: dict[str, Attended]
    alone: Attended | None
    part: PartTimes | None


def of_this_part(run: AttentionOverRanks, ways: tuple[str, ...], n_virtual: int) -> Compared:
    """What this process finds, in each way one after the other."""
    found = {way: attended(run, WAYS[way]()) for way in ways}
    ranks, alone, part = WAYS[ways[0]](), None, None
    if ranks.rank == 0:
        alone, part = attended(run, None), part_times(run, n_virtual)
    ranks.total(torch.zeros(()))  # that the others wait
    return Compared(ways=found, alone=alone, part=part)


def recorded() -> dict | None:
    """What `python -m benchmarks.parallel --save` wrote last; None where it has not run."""
    return json.loads(RECORDED.read_text(encoding="utf-8")) if RECORDED.exists() else None


def recorded_table(measured: Mapping[str, Any]) -> str:
    """What was measured of training over ranks, a line a run: of several processes the largest
    memory and the longest times."""
    lines = []
    for case in measured["runs"]:
        ranks = case["ranks"]
        largest = {name: max(one[name] for one in ranks) for name in ranks[0] if name != "losses"}
        talking_s = largest["scan_s"] + largest["gradient_s"]
        n = len(ranks)
        lines.append(
            (
                f"{n} process{'es' * (n > 1)}"
                + f", {case['way']}" * bool(case["way"])
                + f", {case['threads']} threads" * (case["threads"] > 1),
                f"{case['seq_len']:,}",
                f"{largest['tensor_bytes'] / 1e6:z,.0f} MB",
                f"{largest['process_bytes'] / 1e6:z,.0f} MB",
                f"{largest['step_s']:z.2f} s",
                f"{largest['cpu_s']:z.2f} s",
                f"{talking_s / largest['step_s']:z.0%}" if case["way"] else "–",
                f"{sum(one['sent_bytes'] for one in ranks):,} B" if case["way"] else "–",
            )
        )
    return markdown_table(RECORDED_HEAD, lines)
