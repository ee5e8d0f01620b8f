"""Tiny fixed runs of every computing part, whose numbers the recorded rows depend on.

A part whose numbers change computes something else: its VERSION has to be raised, and the rows that
it computed are then old. `python -m tests.golden.parts` writes the numbers of parts that are new or
have a new version to `values.json`, and leaves the others.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from replib.attention import ATTENTION, causal_names
from replib.attention.dpfp import DPFPAttention
from replib.attention.linformer import LinformerAttention
from replib.claims.autopsy.defects import DEFECTS, AutopsyConfig
from replib.claims.common import laptop_copy
from replib.fast_weights import FEATURES, MemoryConfig, RetrievalConfig, RetrievalTraining
from replib.language_model import LanguageModelConfig
from replib.lstm import LSTMConfig
from replib.models import TransformerConfig
from replib.tasks import AssociativeRetrieval, CausalCopy, SequenceCopy
from replib.tasks.images import Pixels
from replib.tasks.text import Text
from replib.tasks.translation import NumberWords
from replib.training import Training, TrainingConfig

VALUES = Path(__file__).with_name("values.json")
B, H, N, D, M = 2, 2, 37, 8, 5
COMPILED = ("cpu", "cuda")  # kernels for float32 alone, which are compared with the others


def numbers(*tensors: Tensor) -> list[float]:
    """Two weighted sums of each tensor, which depend on every element."""
    found = []
    for x in tensors:
        x = x.detach().double().flatten()
        place = torch.arange(1, len(x) + 1, dtype=torch.float64)
        found += [(x * torch.sin(place)).sum().item(), (x * torch.cos(place / 3)).sum().item()]
    return found


def attention(
    name: str, choice: str, causal: bool, dtype: torch.dtype = torch.float64
) -> list[float]:
    """Outputs and gradients of a mechanism."""
    generator = torch.Generator().manual_seed(1)
    options, kernel = ATTENTION[name].choices()[choice]
    sizes = {"n_heads": H, "head_dim": D, "max_len": N}
    mechanism = ATTENTION[name].for_model(**sizes, options=options, kernel=kernel)
    parameters = list(mechanism.to(dtype).parameters())
    for parameter in parameters:
        drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data = drawn.to(dtype)
    q, k, v, dy = (
        torch.randn(B, H, N, size, generator=generator, dtype=torch.float64).to(dtype)
        for size in (D, D, M, M)
    )
    inputs = [x.requires_grad_() for x in (q, k, v)]
    y = mechanism(*inputs, causal=causal)
    gradients = torch.autograd.grad(y, inputs + parameters, dy, allow_unused=True)
    return numbers(y, *(g for g in gradients if g is not None))


def _sampled(task) -> list[float]:
    batch = task.sample(3, torch.Generator().manual_seed(2))
    if isinstance(task, AssociativeRetrieval):
        return numbers(batch.keys, batch.values, batch.queries, batch.targets, batch.asked)
    return numbers(*batch.inputs, batch.targets, batch.in_loss, batch.in_accuracy)


def _trained(run: Training, n_steps: int = 3) -> list[float]:
    losses = [run.train_step().item() for _ in range(n_steps)]
    return [*losses, *run.evaluate()]


def _copied(config: TrainingConfig) -> list[float]:
    return _trained(config.training(seed=1, device="cpu"))


def _paper(name: str, task, **changes) -> TrainingConfig:
    model = TransformerConfig(
        attention=name, n_layers=1, n_heads=2, d_model=16, d_feedforward=32, **changes
    )
    return TrainingConfig(task=task, model=model, batch_size=4, n_steps=3, eval_batches=1)


def _texts() -> Iterator[tuple[LanguageModelConfig, str]]:
    """Language models, one whose state is carried, one with a memory, an LSTM, and positions."""
    sizes = {"n_layers": 1, "n_heads": 2, "d_model": 16, "d_feedforward": 32}
    options = {"task": Text(seq_len=16), "batch_size": 4, "n_steps": 3, "eval_batches": 1}
    lstm = LSTMConfig(n_layers=2, d_model=16)
    yield LanguageModelConfig(model=lstm, n_carried=0, **options), "lstm"
    for name, how in (("delta", {"n_carried": 2}), ("softmax", {"n_carried": 0, "memory_len": 8})):
        model = TransformerConfig(attention=name, positions="none", **sizes)
        yield LanguageModelConfig(model=model, **how, **options), f"{name} carried"
    for positions in ("learned", "batch row"):
        model = TransformerConfig(attention="linear", positions=positions, tied=True, **sizes)
        yield LanguageModelConfig(model=model, **options), positions


def _with_defects(name: str, *defects: str) -> AutopsyConfig:
    model = TransformerConfig(
        attention=name, n_layers=2, n_heads=2, d_model=16, d_feedforward=32, positions="added"
    )
    sizes = {"batch_size": 2, "n_steps": 3, "eval_batches": 1}
    return AutopsyConfig(task=SequenceCopy(seq_len=8), model=model, defects=defects, **sizes)


def _memory(features: str, rule: str) -> RetrievalConfig:
    options = {"dpfp": DPFPAttention.Options(nu=2)}.get(features)
    model = MemoryConfig(attention=features, options=options, update_rule=rule, head_dim=16)
    again = rule != "sum"
    task = AssociativeRetrieval(n_keys=8, with_replacement=again)
    return RetrievalConfig(task=task, model=model, batch_size=4, eval_sequences=2)


def _remembered(config: RetrievalConfig) -> list[float]:
    run = RetrievalTraining(config, seeds=(0, 1), device="cpu")
    losses = [run.train_step() for _ in range(3)]
    return torch.cat([*losses, run.evaluate()]).tolist()


@dataclass(frozen=True)
class Part:
    """A tiny fixed run, and the versions of what computes it."""

    name: str
    versions: Mapping[str, int]
    compute: Callable[[], list[float]]


def float64_parts() -> Iterator[Part]:
    """Parts that are computed in float64, or whole numbers."""
    for name, mechanism in ATTENTION.items():
        for choice in mechanism.choices():
            for causal in (True, False)[not mechanism.causal :]:
                if choice not in COMPILED:
                    kind = "causal" if causal else "not causal"
                    yield Part(
                        f"attention/{name}/{choice}/{kind}",
                        {name: mechanism.VERSION},
                        partial(attention, name, choice, causal),
                    )
    for task in (
        CausalCopy(seq_len=21),
        SequenceCopy(seq_len=9),
        AssociativeRetrieval(n_keys=8),
        AssociativeRetrieval(n_keys=8, with_replacement=True),
        Pixels(),
        NumberWords(),
        Text(seq_len=16),
    ):
        kept, name = getattr(task, "with_replacement", None), type(task).__name__
        label = f"task/{name}{'' if kept is None else f'/{kept}'}"
        yield Part(label, {name: task.VERSION}, partial(_sampled, task))


def float32_parts() -> Iterator[Part]:
    """Parts that are trained for three steps, in float32."""
    for name in causal_names():
        config = laptop_copy(name, 16, 3, batch_size=4, eval_batches=1)
        yield Part(f"training/laptop/{name}", config.versions, partial(_copied, config))
    for name in ("softmax", "linear"):
        for task in (CausalCopy(seq_len=16), SequenceCopy(seq_len=8), Pixels(), NumberWords()):
            config, label = _paper(name, task), f"training/paper/{type(task).__name__}/{name}"
            yield Part(label, config.versions, partial(_copied, config))
        for defect in DEFECTS:
            if name == "linear" or not DEFECTS[defect].linear_only:
                config = _with_defects(name, defect)
                yield Part(f"autopsy/{defect}/{name}", config.versions, partial(_copied, config))
    for config, label in _texts():
        yield Part(f"training/text/{label}", config.versions, partial(_copied, config))
    options = LinformerAttention.Options(k=4)
    how = {"options": options, "decoder_attention": "softmax"}
    config = _paper("linformer", SequenceCopy(seq_len=8), **how)
    yield Part("training/paper/SequenceCopy/linformer", config.versions, partial(_copied, config))
    for features in FEATURES:
        for rule in ("sum", "delta", "fwm"):
            if features != "softmax" or rule == "sum":
                config = _memory(features, rule)
                versions, label = config.versions, f"retrieval/{features}/{rule}"
                yield Part(label, versions, partial(_remembered, config))


def main() -> None:
    """Write the numbers of parts that are new, or have new versions; no others."""
    known = json.loads(VALUES.read_text())
    found = {}
    for part in [*float64_parts(), *float32_parts()]:
        found[part.name] = known.get(part.name, {})
        if found[part.name].get("versions") != part.versions:
            found[part.name] = {"versions": part.versions, "numbers": part.compute()}
    VALUES.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
