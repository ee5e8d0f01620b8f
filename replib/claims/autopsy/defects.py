"""What the 2022 replication did otherwise, as switches on the real model and its training.

Each defect was found by reading the code of Do & Bergner 2022, *Replication of 'Transformers are
RNNs'*, and is re-enacted here in torch: by wrapping a part of `EncoderDecoder`, by changing its
`TrainingConfig`, or by what a step does. With no defect a run is that of `Training`, bit for bit.
What models are altered with is in `broken_parts`.
"""

from dataclasses import dataclass, fields, replace
from typing import ClassVar

import torch
from torch import Tensor

from replib.claims.autopsy.broken_parts import break_model, initialise_as_flux
from replib.lab.run import register
from replib.layers import set_dropout_generator
from replib.models import EncoderDecoder
from replib.tasks import SequenceCopy
from replib.training import Training, TrainingConfig

VERSION = 1  # raised when what a defect does changes

ARTICLE_LR = 1e-4
BATCH_FACTOR = 4  # the linear runs seem to have had batch 32, the softmax runs 8
# The loss is evaluated again after each update, and before every eighth: 1.125 times a step.
EXTRA_EVERY = 8


@dataclass(frozen=True, kw_only=True)
class Defect:
    """One thing that the replication did otherwise.

    Attributes:
        what: a sentence on it.
        where: file and line in the replication.
        expected: what it should do, by reading; whether it does is for the ablation to say. Empty
            where what it does was known first.
        linear_only: its softmax runs did not have it, as far as their code and loss scale tell.
        slow: a run takes far longer and has the same losses, but for rounding.
        full_size: found later, and recorded at the article's own size alone (`autopsy_full`); the
            ablation of a small model (`autopsy`) has no run with it.
    """

    title: str
    what: str
    where: str
    expected: str = ""
    linear_only: bool = False
    slow: bool = False
    full_size: bool = False


DEFECTS = {
    "float64": Defect(
        title="float64 after attention",
        what="The literal 1e-8 in the denominator is a Float64 and turns what attention gives, the "
        "residual stream and every later product into float64.",
        where="LinTrans.jl:175",
        expected="slower, twice the memory; the losses hardly change",
        linear_only=True,
        slow=True,
    ),
    "split_heads": Defect(
        title="heads split twice",
        what="Queries, keys and values are split into heads again where they are one head already.",
        where="LinTrans.jl:160-166, 268",
        expected="64 heads of 8 in place of 8 of 64: a state an eighth the size, so less is copied",
        linear_only=True,
    ),
    "leak": Defect(
        title="no causal mask",
        what="The decoder's self-attention ignores its mask and sees the tokens that it should "
        "predict.",
        where="LinTrans.jl:122-141, 446",
        expected="a loss near 0 that is no copying, where the model finds the leak",
    ),
    "reused_encoder": Defect(
        title="half an encoder",
        what="The encoder applies its second layer in place of the later ones, and returns what "
        "came before them.",
        where="LinTrans.jl:515-522",
        expected="slower than a model of two encoder layers, and no better",
    ),
    "adam": Defect(
        title="Adam at 1e-4",
        what="Adam with a constant learning rate of 1e-4, under a comment that says RAdam. The "
        "article gives 1e-3 and names no optimiser; mended is RAdam at 1e-3, the paper's.",
        where="LinTrans.jl:114-115",
        expected="slower convergence",
    ),
    "batch_32": Defect(
        title="batch 32, loss summed",
        what="Batch 32 in place of 8, with a loss that is summed over the batch.",
        where="LinTrans.jl:34; Pluto_GPU.ipynb:41; loss.jl",
        expected="up to four times the time a step, and curves on another scale",
        linear_only=True,
    ),
    "extra_losses": Defect(
        title="extra evaluations",
        what="The loss is computed again, on the same batch: after each update, which is what the "
        "curves show, and before every eighth, to print it. 1.125 times a step.",
        where="LinTrans.jl:582-587",
        expected="a third more time a step; the losses do not change",
    ),
    "elu_feedforward": Defect(
        title="elu + 1 in the decoder",
        what="The decoder's feed-forward network has elu + 1 as its activation.",
        where="LinTrans.jl:335, 498",
        expected="slower convergence",
        linear_only=True,
    ),
    "unfused": Defect(
        title="unfused attention",
        what="Attention as separate sums over permuted layouts, each of which is stored.",
        where="LinTrans.jl:169, 179, 185",
        expected="slower; the losses do not change",
        linear_only=True,
        slow=True,
    ),
    "embedding_scale": Defect(
        title="embedding divided by √E",
        what="The embedding of a token is multiplied by 1/√E before sinusoids are added to it, "
        "E = 512; Vaswani et al. 2017 (section 3.4) multiply by √E. Symbols are then 1/16 of "
        "positions in size.",
        where="LinTrans.jl:84",
        full_size=True,
    ),
    "trained_positions": Defect(
        title="trained positions",
        what="The sinusoids are among the parameters that the optimiser changes.",
        where="LinTrans.jl:568",
        full_size=True,
    ),
    "details": Defect(
        title="other details",
        what="Dense layers start from Glorot's uniform with biases of 0. No gradient is clipped. "
        "There is no norm after the last layer, no dropout of the embedding or within the "
        "feed-forward network, but of softmax's weights. The decoder is given the end token too.",
        where="LinTrans.jl:83-87, 525-533, 559, 581-586; Flux 0.12.9",
        full_size=True,
    ),
}


def all_defects(attention: str) -> tuple[str, ...]:
    """Every defect of the article's runs of a mechanism, those found later included."""
    return tuple(n for n, one in DEFECTS.items() if attention == "linear" or not one.linear_only)


def article_defects(attention: str) -> tuple[str, ...]:
    """The defects of the article's runs of a mechanism that the ablation of a small model has."""
    return tuple(n for n in all_defects(attention) if not DEFECTS[n].full_size)


def loss_defects(attention: str) -> tuple[str, ...]:
    """The article's defects of a mechanism but for those that are merely slow."""
    return tuple(one for one in article_defects(attention) if not DEFECTS[one].slow)


def full_size_defects(attention: str) -> tuple[str, ...]:
    """Every defect of the article's runs of a mechanism that can change a loss."""
    changing = (one for one in all_defects(attention) if not DEFECTS[one].slow)
    return tuple(one for one in changing if one != "extra_losses")


@dataclass(frozen=True, kw_only=True)
class AutopsyConfig(TrainingConfig):
    """A run of the 2022 task with some defects; the other fields are those of the mended run.

    Raises:
        ValueError: a defect is unknown or given twice, or the task is another.
    """

    kind: ClassVar[str] = "autopsy"
    experiment: ClassVar[str] = "autopsy"

    defects: tuple[str, ...] = ()

    def __post_init__(self):
        super().__post_init__()
        for name in self.defects:
            if name not in DEFECTS or self.defects.count(name) > 1:
                raise ValueError(f"defect {name!r}: use each of {', '.join(DEFECTS)} at most once")
        if not isinstance(self.task, SequenceCopy):
            raise ValueError(
                f"task {type(self.task).__name__}: the autopsy is of the encoder-decoder, "
                "use SequenceCopy"
            )
        # One set of defects is one run, in whatever order they were named.
        object.__setattr__(self, "defects", tuple(n for n in DEFECTS if n in self.defects))

    @property
    def versions(self) -> dict[str, int]:
        return super().versions | {"autopsy": VERSION}

    @property
    def trained(self) -> TrainingConfig:
        """This config with the values that defects change."""
        values = {one.name: getattr(self, one.name) for one in fields(TrainingConfig)}
        config = TrainingConfig(**values)
        if "adam" in self.defects:
            config = replace(
                config,
                optimizer="adamw",
                weight_decay=0.0,  # which makes it Adam
                lr=ARTICLE_LR,
                schedule="drop",
                lr_drop_step=self.n_steps,
            )
        if "batch_32" in self.defects:
            config = replace(config, batch_size=BATCH_FACTOR * self.batch_size)
        if "details" in self.defects:
            config = replace(config, clip="none")
        return config

    def training(self, *, seed: int = 0, device: str | None = None) -> Training:
        return Autopsy(self, seed=seed, device=device)


register(AutopsyConfig)


class Autopsy(Training):
    """A run with defects; its losses are nats a token whatever the defects are."""

    def __init__(self, config: AutopsyConfig, *, seed: int = 0, device: str | None = None):
        super().__init__(config.trained, seed=seed, device=device)
        self.defects = config.defects
        break_model(self.model, config.defects)
        if "details" in self.defects:
            initialise_as_flux(self.model, torch.Generator().manual_seed(seed))
        set_dropout_generator(self.model, self.dropout)
        self.model.to(self.device)
        if "trained_positions" in self.defects:  # the optimiser was made without them
            self.optimizer.add_param_group({"params": [self.model.embedding.sinusoids]})
        if "batch_32" in self.defects:  # the gradients are those of the summed loss
            for parameter in self.model.parameters():
                parameter.register_hook(lambda gradient: gradient * self.config.batch_size)

    def train_step(self) -> Tensor:
        if "extra_losses" not in self.defects:
            return super().train_step()
        if (self.step + 1) % EXTRA_EVERY == 0:
            self._evaluate_again(self.data.clone_state())
        drawn = self.data.clone_state()
        loss = super().train_step()
        self._evaluate_again(drawn)
        return loss

    @torch.no_grad()
    def _evaluate_again(self, generator: torch.Generator) -> None:
        """The loss of the batch that a generator draws next, in evaluation mode.

        Deviation: of an eighth step the replication's two evaluations stand on both sides of the
        update, the first after the gradients are computed; here it comes before them, which changes
        neither its value nor its cost.
        """
        self.model.eval()
        batch = self.config.task.sample(self.config.batch_size, generator)
        self.config.task.loss(self.model(*batch.inputs), batch).item()


@torch.no_grad()
def followed(
    model: EncoderDecoder, task: SequenceCopy, generator: torch.Generator, n: int = 64
) -> tuple[float, float]:
    """Whether a decoder copies or leaks: given the sources of n sequences and the tokens of n
    others, the share of the symbols it expects that are the source's, which is copying, and the
    share that are the next of its own input, which is the leak. Chance is one in `n_symbols`."""
    model.eval()
    source, own = task.sample(n, generator), task.sample(n, generator)
    written = model(source.inputs[0], own.inputs[1]).argmax(-1)[:, :-1]  # without the end token
    shares = ((written == one.targets[:, :-1]).float().mean().item() for one in (source, own))
    return tuple(shares)
