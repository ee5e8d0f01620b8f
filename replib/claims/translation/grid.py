"""The translators: of number words, and of Multi30k."""

from replib.attention.linformer import LinformerAttention
from replib.claims.common import ADAMW, experiment, laptop_model
from replib.lab.run import Job, TrainingJob
from replib.models import TransformerConfig
from replib.tasks.translation import NumberWords, ParallelText
from replib.training import TrainingConfig

NUMBER_KS = (4, 8)  # a number has 11 words at most
TEXT_KS = (32, 64)  # of the Linformer work; captions have 14 tokens
FEW_SLOTS = 8  # fewer than tokens: what the others are on long sentences


def linformer(k: int) -> dict:
    """The model options of the Linformer work: slots of the source, softmax over the target."""
    options = LinformerAttention.Options(k=k)
    return {"attention": "linformer", "options": options, "decoder_attention": "softmax"}


def translators(ks: tuple[int, ...]) -> list[dict]:
    """The model options of each mechanism."""
    return [{"attention": "softmax"}, {"attention": "linear"}, *map(linformer, ks)]


def number_config(how: dict, n_steps: int = 1500, **changes) -> TrainingConfig:
    """A translator of number words, which a CPU trains in a quarter of a minute."""
    options = {
        "task": NumberWords(),
        "model": laptop_model(**how),
        "batch_size": 64,
        "n_steps": n_steps,
        "lr": 3e-3,
        "warmup_steps": min(50, n_steps // 4),
        "eval_every": max(10, n_steps // 20),
        "eval_batches": 2,
    }
    return TrainingConfig(**ADAMW | options | changes)


def text_model(how: dict, dropout: float, **sizes) -> TransformerConfig:
    """A translator of sentences with the options of a mechanism."""
    return TransformerConfig(
        **how, **sizes, norm="pre", positions="added", dropout=dropout, tied=True
    )


def text_config(how: dict, task: ParallelText, n_steps: int, **changes) -> TrainingConfig:
    """A translator of sentences: 3 + 3 layers of 256, 6 million weights with 8000 subwords.

    Deviation: the Linformer work has 6 + 6 layers of 512, no dropout, no label smoothing and
    weights that are not tied.
    """
    sizes = {"n_layers": 3, "n_heads": 8, "d_model": 256, "d_feedforward": 512}
    options = {
        "task": task,
        "model": text_model(how, 0.2, **sizes),
        "batch_size": 128,
        "n_steps": n_steps,
        "lr": 1e-3,
        "warmup_steps": min(400, n_steps // 4),
        "label_smoothing": 0.1,
        "eval_every": max(1, n_steps // 20),
        "eval_batches": 8,
    }
    return TrainingConfig(**ADAMW | options | changes)


@experiment("English number and date words into German: right to the letter")
def number_words(scale: str) -> list[Job]:
    n_steps, n_seeds = {"smoke": (20, 1), "laptop": (1500, 5), "paper": (6000, 5)}[scale]
    configs = [number_config(how, n_steps) for how in translators(NUMBER_KS)]
    return [TrainingJob(config=one, seed=seed) for seed in range(n_seeds) for one in configs]


@experiment("English into German: BLEU, chrF and perplexity by the length of the source")
def translation(scale: str) -> list[Job]:
    """Multi30k; at the paper scale WMT14 with the sizes of the Linformer work, on CUDA."""
    if scale == "paper":
        task = ParallelText(corpus="wmt14", vocab_size=32_000, max_len=256)
        sizes = {"n_layers": 6, "n_heads": 8, "d_model": 512, "d_feedforward": 2048}
        configs = []
        for how in translators(TEXT_KS):
            changes = {"model": text_model(how, 0.1, **sizes), "precision": "bf16"}
            changes |= {"lr": 7e-4, "warmup_steps": 4000, "schedule": "inverse_sqrt"}
            configs.append(text_config(how, task, 100_000, batch_size=512, **changes))
        return [TrainingJob(config=one, seed=0) for one in configs]
    n_steps, n_seeds = {"smoke": (4, 1), "laptop": (2400, 3)}[scale]
    task = ParallelText()
    configs = [text_config(how, task, n_steps) for how in translators(TEXT_KS)]
    jobs = [TrainingJob(config=one, seed=seed) for seed in range(n_seeds) for one in configs]
    few = text_config(linformer(FEW_SLOTS), task, n_steps)  # last, as others are asked for first
    return [*jobs, *(TrainingJob(config=few, seed=seed) for seed in range(n_seeds))]


EXPERIMENTS = (number_words, translation)
