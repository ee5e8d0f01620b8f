"""What the pages of scaling and of the crossover share: controls, jobs, and what is predicted.

B batch, H heads, N sequence length, D size of queries, keys and values.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import marimo as mo
import torch

from replib import plain
from replib.attention import ATTENTION
from replib.claims.common import name_of
from replib.device import resolve_device
from replib.lab import predict, store, timing
from replib.lab.run import CostJob, unavailable
from replib.lab.store import Row
from replib.lab.text import LEFT, markdown_table
from replib.lab.timing import Cost, CostConfig, tokens_batch
from replib.lab.verdict import three_digits
from replib.pages import layout, processor
from replib.pages.controls import DEVICE, WORK_LABELS, Control, attempt

ALL_VARIANTS = {
    f"{attention} {name}".strip(): (attention, options, kernel)
    for attention, mechanism in ATTENTION.items()
    for name, (options, kernel) in mechanism.choices().items()
    if mechanism.causal
}
"""Every causal mechanism with the options and kernels that it offers, by the name that controls
show."""

HEAD_DIMS = (8, 16, 32, 64, 128)
TERMS = f"""
*Textbook* softmax stores all N × N weights; *fused* softmax (PyTorch's
`scaled_dot_product_attention`) computes the same block by block and stores none. Linear attention
is the same equation in three programs: *plain* forms N × N weights as softmax does, *torch* takes
{plain.CHUNK_LEN} positions at a time, and *cpu* (*cuda* on a graphics card) does so in one compiled
kernel. More words are in the [glossary](/#glossary).
"""


def live_jobs(values: Mapping[str, Any]) -> list[CostJob]:
    """The points that a cost notebook's controls ask for; a job a length, shortest first.

    `tokens` scales the batch inversely with N, and is the longest N at least, so that every batch
    has as many; without it the batch is `batch_size`.

    Raises:
        ValueError: a kernel cannot run on the device.
    """
    first, last = (round(math.log2(values[name])) for name in ("shortest", "seq_len"))
    tokens = max(values["tokens"], 2**last) if "tokens" in values else None
    jobs = [
        CostJob(
            configs=tuple(
                CostConfig(
                    attention=attention,
                    options=options,
                    kernel=kernel,
                    seq_len=2**e,
                    batch_size=tokens_batch(tokens, 2**e) if tokens else values["batch_size"],
                    n_heads=values["n_heads"],
                    head_dim=values["head_dim"],
                    work=values["work"],
                )
                for attention, options, kernel in map(ALL_VARIANTS.get, values["variants"])
            ),
            n_repeats=values["repeats"],
        )
        for e in range(min(first, last), last + 1)
    ]
    device_type = resolve_device(values.get("device")).type
    for config in jobs[0].configs:
        if why_not := unavailable(config, device_type):
            name = f"{config.attention} {config.kernel}"
            raise ValueError(f"{name} cannot run with these settings: {why_not}")
    return jobs


def refused_variants() -> dict[str, str]:
    """The names of ALL_VARIANTS that can run on no device of this machine, each with the reason."""
    kinds = ["cpu", *["cuda"] * torch.cuda.is_available()]
    refused = {}
    for name, (attention, options, kernel) in ALL_VARIANTS.items():
        config = CostConfig(attention=attention, options=options, kernel=kernel)
        reasons = [unavailable(config, kind) for kind in kinds]
        if all(reasons):
            refused[name] = reasons[0]
    return refused


def variants() -> Control:
    """The choice of mechanisms, options and kernels, of those that can run on this machine. It
    begins with the one compiled for the device, beside what is to be had everywhere."""
    refused = refused_variants()
    offered = tuple(name for name in ALL_VARIANTS if name not in refused)
    first = ("softmax textbook", "softmax fused", "linear torch", f"linear {resolve_device().type}")
    default = tuple(name for name in offered if name in first)
    return Control("variants", "Attention", offered, default, refused=refused)


WORK = Control("work", "Work", tuple(WORK_LABELS), "forward_backward", labels=WORK_LABELS)


def controls_of(*own: Control, repeats: int) -> list[Control]:
    """A page's own controls with those that both have."""
    heads = Control("n_heads", "Heads", (1, 2, 4, 8, 16), 8)
    head_dim = Control("head_dim", "Head size D", HEAD_DIMS, 32)
    repeated = Control("repeats", "Repeats", (1, 3, 5, 7, 15, 31), repeats)
    return [*own, heads, head_dim, repeated, WORK, DEVICE, variants()]


def multiply_adds(config: CostConfig) -> float | None:
    """Those of one sequence by the equations, of all heads: 2 N² D where there are N × N weights,
    2 N D (D + 1) of linear attention; going back takes twice as many again. None of others."""
    n, d = config.seq_len, config.head_dim
    if config.attention not in ("softmax", "linear"):
        return None
    formed = config.attention == "softmax" or config.kernel == "plain"
    times = 3 if config.work == "forward_backward" else 1
    return times * config.n_heads * 2 * n * d * (n if formed else d + 1)


def predicted_ms(configs: Sequence[CostConfig], device: str | None = None) -> list[float]:
    """Milliseconds of a call, by calls that were measured on this machine; where there were none of
    this head size, by the multiply-adds of another. Only where there were none at all some are
    measured, and that is the one case that takes longer than a look-up; NaN while another timing
    runs."""
    threads = processor.ALL_THREADS

    def known(some: Sequence[CostConfig], measure: bool = False) -> list[float]:
        return predict.calls(some, device, threads=threads, measure=measure)

    def from_others(config: CostConfig) -> float:
        for d in sorted(HEAD_DIMS, key=lambda d: abs(math.log(d / config.head_dim))):
            other = replace(config, head_dim=d)
            if multiply_adds(config) and not math.isnan(seconds := known([other])[0]):
                return seconds * multiply_adds(config) / multiply_adds(other)
        return math.nan

    found = [s if s == s else from_others(c) for s, c in zip(known(configs), configs, strict=True)]
    if any(map(math.isnan, found)):
        found = processor.in_passing_thread(known, configs, True)
    return [1000 * seconds for seconds in found]


def predicted_rows(
    jobs: Sequence[CostJob], device: str | None = None, memory: bool = False
) -> list[Row]:
    """Rows of what jobs are expected to give, as if they had run; `memory`, which takes longer,
    where it is asked for."""
    configs, kind = [c for job in jobs for c in job.configs], resolve_device(device)
    bytes_of = memory_bytes(configs, kind) if memory else [None] * len(configs)
    rows = []
    for config, ms, n_bytes in zip(configs, predicted_ms(configs, device), bytes_of, strict=True):
        if not math.isnan(ms):
            cost = Cost(config, "ok", None, (ms,), n_bytes and round(n_bytes * config.batch_size))
            args = ("prediction", "predicted", config, 0, "ok", cost.summary())
            rows.append(store.make_row(*args, device=str(kind)))
    return rows


def memory_bytes(configs: Sequence[CostConfig], device: torch.device) -> list[float]:
    """About what a sequence of each takes beyond its inputs, traced in short ones."""

    def traced() -> list[float]:
        some = [predict.ready(replace(config, batch_size=1), device) for config in configs]
        return [timing.call_bytes(config, device) for config in some]

    return processor.in_passing_thread(traced)


def followed(settings: Mapping[str, Any]) -> mo.Html:
    """What one sequence of the longest N costs, by the equations and predicted, as a table that
    needs no run; nothing where the settings cannot be run, which `run_panel` says."""
    jobs, _ = attempt(live_jobs, settings)
    if layout.in_static_page() or not jobs or not jobs[-1].configs:
        return mo.md("")  # what is predicted is of the machine that made the page
    configs, device = jobs[-1].configs, settings.get("device")
    memories = memory_bytes(configs, resolve_device(device))
    lines = [
        [
            name_of(config.variant),
            f"{count / 1e6:z,.2f} million" if (count := multiply_adds(config)) else "–",
            f"{n_bytes / 1e6:z,.2f} MB",
            "–" if math.isnan(ms) else f"{three_digits(ms / config.batch_size)} ms",
        ]
        for config, n_bytes, ms in zip(
            configs, memories, predicted_ms(configs, device), strict=True
        )
    ]
    n, d = configs[0].seq_len, configs[0].head_dim
    head = (f"one sequence of N = {n}", "multiply-adds", "memory, predicted", "time, predicted")
    said = (
        f"\n\nBy multiply-adds alone linear attention is cheaper from N = D + 2 = {d + 2} on: "
        "N² D against N D (D + 1)."
    )
    return mo.md(markdown_table(head, lines, LEFT) + said)
