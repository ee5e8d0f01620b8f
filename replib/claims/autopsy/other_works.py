"""Defects of other public works, each re-enacted small enough to be seen at once.

A BLEU that scores the first translation alone, positions that are taken from the batch, and a
Linformer that sees the future when it is made causal.

N sequence length.
"""

import random
from collections.abc import Sequence
from typing import NamedTuple

import torch

from replib.attention.softmax import softmax_attention
from replib.claims.linformer.probes import Attend, slots_masked
from replib.models import CausalTransformer, TransformerConfig

WORDS = [f"word{i}" for i in range(40)]
SENTENCE = 14  # words
N_PAIRS = 3003  # sentences that the earlier work was tested on


class Score(NamedTuple):
    """A corpus BLEU, from 0 to 100, and how many words of the translations it counted."""

    bleu: float
    n_words: int


def small_corpus(n_sentences: int, seed: int = 0) -> tuple[list[str], list[str]]:
    """Translations and their references: a translation is its reference with about one word in
    six dropped or replaced by another of the corpus."""
    if n_sentences < 2:
        raise ValueError(f"n_sentences {n_sentences}: use 2 or more")
    drawn = random.Random(seed)

    def retold(word: str) -> str | None:
        chance = drawn.random()
        return None if chance < 0.08 else drawn.choice(WORDS) if chance < 0.16 else word

    references = [[drawn.choice(WORDS) for _ in range(SENTENCE)] for _ in range(n_sentences)]
    translations = [" ".join(filter(None, map(retold, words))) for words in references]
    return translations, [" ".join(words) for words in references]


def bleu_scores(translations: Sequence[str], references: Sequence[str]) -> tuple[Score, Score]:
    """Corpus BLEU (Papineni et al. 2002, by sacrebleu), called rightly and as the work called it.

    sacrebleu takes a list of *sets* of references, each a reference for every translation. One set
    of all references is right. A set of one sentence for each, as in the work, ends after the first
    translation: it alone is scored, and may agree with any reference of the corpus.

    Raises:
        ImportError: sacrebleu is missing.
        ValueError: not one reference for each translation.
    """
    if len(translations) != len(references) or not translations:
        raise ValueError(
            f"{len(translations)} translations, {len(references)} references: give one reference "
            "for each translation, and at least one"
        )
    try:
        from sacrebleu import corpus_bleu
    except ImportError as error:
        raise ImportError("sacrebleu is missing: pip install sacrebleu==2.6.0") from error
    right = corpus_bleu(list(translations), [list(references)])
    wrong = corpus_bleu(list(translations), [[one] for one in references])
    return Score(right.score, right.sys_len), Score(wrong.score, wrong.sys_len)


@torch.no_grad()
def order_seen(positions: str) -> float:
    """How far a language model's last output moves, relative to its size, when two earlier tokens
    change places: 0 for a model that cannot see order.

    Args:
        positions: those of the model, one of `layers.POSITIONS`.
    """
    sizes = {"n_layers": 1, "n_heads": 2, "d_model": 32, "dropout": 0.0}
    config = TransformerConfig(attention="softmax", positions=positions, **sizes)
    model = CausalTransformer(config, vocab_size=9, max_len=8).double().eval()
    generator = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        weight.copy_(torch.randn(weight.shape, generator=generator) / weight.shape[-1] ** 0.5)
    tokens = torch.arange(8)[None]  # (1, N)
    swapped = tokens.clone()
    swapped[:, [1, 4]] = tokens[:, [4, 1]]
    y, z = model(tokens)[:, -1], model(swapped)[:, -1]
    return ((y - z).norm() / y.norm()).item()


@torch.no_grad()
def future_leak(attend: Attend, seq_len: int) -> float:
    """How far outputs of q, k, v (1, 1, N, 16) move, relative to their size, when all that comes
    after them is changed: the median over positions. 0 for what is causal."""
    generator = torch.Generator().manual_seed(0)
    now, other = torch.randn(2, 3, 1, 1, seq_len, 16, generator=generator, dtype=torch.float64)
    y, moved = attend(*now), []
    for n in range(seq_len - 1):
        pairs = zip(now, other, strict=True)
        changed = [torch.cat([a[:, :, : n + 1], b[:, :, n + 1 :]], dim=2) for a, b in pairs]
        difference = attend(*changed)[:, :, n] - y[:, :, n]
        moved.append((difference.norm() / y[:, :, n].norm()).item())
    return sorted(moved)[len(moved) // 2]


def shown() -> dict[str, tuple[str, str]]:
    """What each defect does, just measured: mended, and broken.

    Raises:
        ImportError: sacrebleu is missing.
    """
    pairs = small_corpus(N_PAIRS)
    scores = bleu_scores(*pairs)
    turned = bleu_scores(*(one[1:] + one[:1] for one in pairs))  # another pair comes first
    leaks = [future_leak(attend, 16) for attend in (softmax_attention, slots_masked(16, 8))]
    order = [order_seen(positions) for positions in ("concatenated", "batch row")]
    return {
        "bleu": tuple(
            f"BLEU {one.bleu:z.1f}, of {one.n_words} words; {other.bleu:z.1f} when another pair "
            "comes first"
            for one, other in zip(scores, turned, strict=True)
        ),
        "positions": tuple(
            f"the last output moves by {moved:z.0%} when two earlier tokens change places"
            for moved in order
        ),
        "linformer": tuple(
            f"outputs move by {leak:z.0%} when all later tokens change" for leak in leaks
        ),
    }
