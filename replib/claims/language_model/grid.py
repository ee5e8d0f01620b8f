"""The language models: Penn Treebank in words, Shakespeare in characters, the study's corpora."""

from dataclasses import replace
from functools import partial

from replib.attention.lsh import LSHAttention
from replib.claims.common import ADAMW, BOTH, experiment, laptop_model, seed_jobs
from replib.lab.record import Experiment
from replib.lab.run import Job, TrainingJob
from replib.language_model import LanguageModelConfig
from replib.lstm import LSTMConfig
from replib.models import TransformerConfig
from replib.tasks.text import Text

N_STEPS = {"smoke": 4, "laptop": 1000, "paper": 10_000}  # of a character model
N_SEEDS = {"smoke": 1, "laptop": 3, "paper": 5}
TOKENS = 2048  # of a step: 16 segments of 128
VALID_TOKENS = 2**15  # of the 55,770 to validate on, the first, at each evaluation
LRS = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
# Of a mechanism, of 0.003 and 0.01 the one with the lower validation loss, tried with one seed
# before anything was recorded; the axis of learning rates, three seeds, has its best there too.
LR = {"softmax": 1e-2, "linear": 1e-2}
OTHER_LR = 1e-2  # of mechanisms without an axis of their own


def character_config(attention: str, n_steps: int = 1000, **changes) -> LanguageModelConfig:
    """A character model of Shakespeare that a CPU trains in less than a minute; changes that are
    fields of a model are of its model.

    Deviation: the study's models have 8 layers of 512, post-norm, and dropout. Sinusoids are
    concatenated to the embedding, as in the copy models, by which such a model learns in a third of
    the steps that it needs where they are added.
    """
    of_model = {
        n: changes.pop(n) for n in [*changes] if n in TransformerConfig.__dataclass_fields__
    }
    few = n_steps < 50
    width = {"d_model": 16 if few else 64} | of_model
    width["d_feedforward"] = 4 * width["d_model"]
    task, batch_size = changes.get("task", Text()), changes.get("batch_size", 16)
    options = {
        "task": task,
        "model": replace(laptop_model(attention), **width | of_model),
        "batch_size": batch_size,
        "n_steps": n_steps,
        "lr": LR.get(attention, OTHER_LR),
        "warmup_steps": min(50, n_steps // 4),
        "eval_every": n_steps if few else n_steps // 10,
        "eval_batches": 1 if few else max(1, VALID_TOKENS // (batch_size * task.seq_len)),
    }
    return LanguageModelConfig(**ADAMW | options | changes)


AXES: dict[str, tuple] = {
    "learning rate": LRS,
    "layers": (2, 5, 8, 11),
    "heads": (1, 2, 4, 8),
    "batch, equal tokens": (4, 16, 64),
    "batch, equal steps": (4, 16, 64),
    "length, equal tokens": (64, 256, 1024),
    "length, equal steps": (64, 256, 1024),
}
"""The axes of the study. Tokens are those of the whole run; with the length, also those of a
step."""


def axis_config(attention: str, axis: str, value, scale: str) -> LanguageModelConfig:
    """A point of an axis; all else is as everywhere.

    Deviation: the learning rate is that of two layers and a batch of 16 at every point of the other
    axes.
    """
    n_steps = N_STEPS[scale]
    if axis == "batch, equal tokens":
        return character_config(attention, max(1, n_steps * 16 // value), batch_size=value)
    if axis.startswith("length"):
        batch_size = TOKENS // value if axis == "length, equal tokens" else 16
        return character_config(attention, n_steps, task=Text(seq_len=value), batch_size=batch_size)
    names = {"learning rate": "lr", "layers": "n_layers", "heads": "n_heads"}
    return character_config(attention, n_steps, **{names.get(axis, "batch_size"): value})


@experiment("Shakespeare in characters: learning rate, layers, heads, batch and length")
def text_axes(scale: str) -> list[Job]:
    """Each axis once, the cheap ones first; the point that all share once."""
    configs = [
        axis_config(attention, axis, value, scale)
        for axis, values in AXES.items()
        for value in (values[:2] if scale == "smoke" else values)
        for attention in BOTH
    ]
    once = [*dict.fromkeys(configs)]
    once.sort(key=lambda c: c.n_steps * c.batch_size * c.task.seq_len * c.model.n_layers)
    n_seeds = N_SEEDS[scale]
    return [TrainingJob(config=config, seed=seed) for seed in range(n_seeds) for config in once]


DEFECTS = {
    "mended": {"positions": "added"},
    "positions by batch row": {"positions": "batch row"},
    "no positions": {"positions": "none"},
    "embedding dropout 0.5": {"positions": "added", "embedding_dropout": 0.5},
}
"""What the study did otherwise, and what it amounts to, by the model's options."""


def defect_config(attention: str, defect: str, scale: str) -> LanguageModelConfig:
    """A character model with a defect of the study; positions are added, as there."""
    return character_config(attention, N_STEPS[scale], tied=True, **DEFECTS[defect])


@experiment("Shakespeare in characters with what the language-model study did otherwise")
def text_defects(scale: str) -> list[Job]:
    configs = [defect_config(a, defect, scale) for defect in DEFECTS for a in BOTH]
    return seed_jobs(configs, N_SEEDS[scale])


PTB_MODELS: dict[str, dict] = {
    "softmax": {},
    "linear": {},
    "dpfp": {},
    "delta": {},
    "performer": {},
    "lsh": {"options": LSHAttention.Options(rounds=4)},
}
"""The mechanisms on Penn Treebank, with their options."""
WORD_SIZES = {"n_layers": 5, "n_heads": 6, "d_model": 192, "d_feedforward": 768}


def word_config(model: TransformerConfig | LSTMConfig, n_steps: int, **changes):
    """A model of Penn Treebank in words; `n_steps` of 32 segments of 64, 454 an epoch. All of the
    validation text is looked at, every twelfth of the run."""
    options = {
        "task": Text(corpus="ptb", level="word", seq_len=64),
        "model": model,
        "batch_size": 32,
        "n_steps": n_steps,
        "lr": 2e-3,
        "weight_decay": 0.1,
        "warmup_steps": min(200, n_steps // 4),
        "eval_every": max(1, n_steps // 12),
        "eval_batches": 40,
    }
    return LanguageModelConfig(**ADAMW | options | changes)


def word_model(attention: str, **changes) -> TransformerConfig:
    """2.2 million weights outside the embedding, which has 1.9 million and is the output layer."""
    how = {"norm": "pre", "positions": "added", "dropout": 0.2, "tied": True}
    options = {**WORD_SIZES, **how, **PTB_MODELS.get(attention, {})} | changes
    return TransformerConfig(attention=attention, **options)


LSTM = LSTMConfig(n_layers=2, d_model=288, dropout=0.2, tied=True)
"""As many weights in all. Its state is carried through the epoch, as is usual."""


@experiment("Penn Treebank in words: perplexity of each mechanism, and of an LSTM")
def language_model(scale: str) -> list[Job]:
    """Penn Treebank; at the paper scale with more steps."""
    n_steps = {"smoke": 2, "laptop": 2400, "paper": 12_000}[scale]
    sizes = {"n_layers": 1, "d_model": 48, "d_feedforward": 48} if scale == "smoke" else {}
    lstm = replace(LSTM, d_model=32) if scale == "smoke" else LSTM
    how = {"eval_batches": 1} if scale == "smoke" else {"stride": 16}
    configs = [word_config(word_model(name, **sizes), n_steps, **how) for name in PTB_MODELS]
    how.pop("stride", None)
    configs.insert(2, word_config(lstm, n_steps, n_carried=0, **how))
    n_seeds = N_SEEDS[scale]
    return [TrainingJob(config=config, seed=seed) for seed in range(n_seeds) for config in configs]


STUDY_STEPS = {"ptb": 7000, "wikitext-2": 15_400, "enwik8": 225_000}  # its epochs
STUDY_SIZES = {"n_layers": 8, "n_heads": 8, "d_model": 512, "d_feedforward": 1024}


def study_config(attention: str, corpus: str, scale: str) -> LanguageModelConfig:
    """The study's own configuration, at the paper scale; smaller at others.

    Deviation: positions are those of tokens, dropout of the embedding is 0.1, the rate falls as a
    cosine to 0 where its falls by 5 % an epoch, gradients are clipped at 1 where its are at 0.5.
    """
    sizes = STUDY_SIZES if scale == "paper" else WORD_SIZES | {"n_layers": 2}
    n_steps = {"smoke": 2, "laptop": 2000, "paper": STUDY_STEPS[corpus]}[scale]
    return word_config(
        TransformerConfig(attention=attention, positions="added", **sizes),
        n_steps,
        task=Text(corpus=corpus, level="byte" if corpus == "enwik8" else "word", seq_len=250),
        batch_size=16,
        lr=5e-5 if scale == "paper" else 5e-4,
        weight_decay=0.0,
        precision="tf32" if scale == "paper" else "float32",
    )


def _study(corpus: str, scale: str) -> list[Job]:
    configs = [study_config(attention, corpus, scale) for attention in BOTH]
    return seed_jobs(configs, N_SEEDS[scale] if scale == "paper" else 1)


@experiment("WikiText-103 in words with the small configuration of Schlag et al. 2021")
def wikitext103(scale: str) -> list[Job]:
    """The small configuration of Schlag et al. 2021, section 6.3: 16 layers of 128.

    Deviation: the whole vocabulary in one softmax, for which a batch is 24 segments and not 96; as
    many steps as a GPU takes in hours, a fifth of the published.
    """
    sizes = {"n_layers": 16, "n_heads": 8, "d_model": 128, "d_feedforward": 2048}
    if scale != "paper":
        sizes = {"n_layers": 2, "n_heads": 8, "d_model": 64, "d_feedforward": 128}
    n_steps = {"smoke": 2, "laptop": 500, "paper": 100_000}[scale]
    task = Text(corpus="wikitext-103", level="word", seq_len=256 if scale == "paper" else 32)
    how = {"norm": "post", "positions": "added", "dropout": 0.1, "tied": True}
    changes = {"task": task, "batch_size": 24, "lr": 2.5e-4, "warmup_steps": n_steps // 50}
    changes |= {"weight_decay": 0.0, "precision": "tf32" if scale == "paper" else "float32"}
    configs = [
        word_config(TransformerConfig(attention=name, **sizes, **how), n_steps, **changes)
        for name in ("softmax", "linear", "dpfp", "delta")
    ]
    return seed_jobs(configs, 1)


EXPERIMENTS = (
    language_model,
    text_axes,
    text_defects,
    *(
        Experiment(
            name=f"study_{corpus.replace('-', '')}",
            title=f"The configuration of the language-model study on {corpus}",
            jobs=partial(_study, corpus),
        )
        for corpus in STUDY_STEPS
    ),
    wikitext103,
)
