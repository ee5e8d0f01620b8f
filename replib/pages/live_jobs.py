"""The jobs that the controls of a notebook ask for."""

import math
from collections.abc import Mapping
from typing import Any

import torch

from replib.attention import ATTENTION
from replib.attention.dpfp import DPFPAttention
from replib.attention.performer import PerformerAttention
from replib.claims.capacity.grid import NO_EPS, retrieval_config
from replib.device import resolve_device
from replib.fast_weights import MemoryConfig, RetrievalConfig
from replib.lab.run import CostJob, RetrievalJob, unavailable
from replib.lab.timing import CostConfig, tokens_batch

ALL_VARIANTS = {
    f"{attention} {name}".strip(): (attention, options, kernel)
    for attention, mechanism in ATTENTION.items()
    for name, (options, kernel) in mechanism.choices().items()
}
"""Every mechanism with the options and kernels that it offers, by the name that controls show."""


def live_cost_jobs(values: Mapping[str, Any]) -> list[CostJob]:
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


RETRIEVAL_SETTINGS = {"every key once": False, "keys come back": True}
"""Whether keys are drawn with replacement: settings 1 and 2 of the paper."""
MIN_EVALUATIONS = 10  # of a live run; from 1000 steps on they are 100 steps apart, as published


def live_retrieval_jobs(values: Mapping[str, Any]) -> list[RetrievalJob]:
    """The runs that the fast weights notebook's controls ask for; a job a mechanism, its seeds
    together. Softmax attention has no update rule. With the most steps and all defects off a run is
    as published.

    Raises:
        ValueError: evaluation on half the length where every key comes once.
    """
    jobs = []
    for attention in values["attention"]:
        options = {
            "dpfp": DPFPAttention.Options(nu=values["nu"]),
            "performer": PerformerAttention.Options(n_directions=values["n_directions"]),
        }
        mended = attention == "performer" and not values["published_eps"]
        model = MemoryConfig(
            attention=attention,
            options=options.get(attention),
            update_rule="sum" if attention == "softmax" else values["update_rule"],
            head_dim=values["head_dim"],
            **({"eps": NO_EPS} if mended else {}),
        )
        config = retrieval_config(
            values["n_keys"],
            model,
            with_replacement=RETRIEVAL_SETTINGS[values["setting"]],
            n_steps=values["n_steps"],
            eval_every=max(
                1, min(RetrievalConfig.eval_every, values["n_steps"] // MIN_EVALUATIONS)
            ),
            eval_half_length=values["eval_half_length"],
            report=values["report"],
        )
        jobs.append(RetrievalJob(config=config, seeds=tuple(range(values["seeds"]))))
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
