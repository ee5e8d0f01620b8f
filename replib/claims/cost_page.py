"""What the pages of scaling and of the crossover share: the choice of kernels, and the jobs."""

import math
from collections.abc import Mapping
from typing import Any

import torch

from replib.attention import ATTENTION
from replib.device import resolve_device
from replib.lab.run import CostJob, unavailable
from replib.lab.timing import CostConfig, tokens_batch
from replib.pages.controls import WORK_LABELS, Control

ALL_VARIANTS = {
    f"{attention} {name}".strip(): (attention, options, kernel)
    for attention, mechanism in ATTENTION.items()
    for name, (options, kernel) in mechanism.choices().items()
    if mechanism.causal
}
"""Every causal mechanism with the options and kernels that it offers, by the name that controls
show."""


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


WORK = Control("work", "Work", tuple(WORK_LABELS), "forward_backward", labels=WORK_LABELS)


def variants() -> Control:
    """The choice of mechanisms, options and kernels, of those that can run on this machine. It
    begins with the one compiled for the device, beside what is to be had everywhere."""
    refused = refused_variants()
    offered = tuple(name for name in ALL_VARIANTS if name not in refused)
    first = ("softmax textbook", "softmax fused", "linear torch", f"linear {resolve_device().type}")
    default = tuple(name for name in offered if name in first)
    return Control("variants", "Attention", offered, default, refused=refused)
