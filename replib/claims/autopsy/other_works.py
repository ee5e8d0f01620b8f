"""Defects of other public works, each re-enacted small enough to be seen at once.

A BLEU that scores the first translation alone, positions that are taken from the batch, and a
Linformer that sees the future when it is made causal.

B batch, H heads, N sequence length, D size per head, E model size, R projected length (rows).
"""

import math
import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from replib.attention.softmax import softmax_attention
from replib.layers import Embedding
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


class BatchIndexed(nn.Module):
    """An embedding whose positions count the sequences of the batch: what comes of positions made
    for tensors (N, B, E) when they are given (B, N, E). All tokens of a sequence get the same."""

    def __init__(self, embedding: Embedding):
        super().__init__()
        self.embedding = embedding

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N) -> (B, N, E)."""
        sequence = torch.arange(len(tokens), device=tokens.device)
        return self.embedding.step(tokens, sequence[:, None])


@torch.no_grad()
def order_seen(*, broken: bool, seed: int = 0) -> float:
    """How far a language model's last output moves, relative to its size, when two earlier tokens
    change places: 0 for a model that cannot see order.

    Args:
        broken: positions are those of the batch.
    """
    config = TransformerConfig(attention="softmax", n_layers=1, n_heads=2, d_model=32, dropout=0.0)
    model = CausalTransformer(config, vocab_size=9, max_len=8).double().eval()
    generator = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        weight.copy_(torch.randn(weight.shape, generator=generator) / weight.shape[-1] ** 0.5)
    if broken:
        model.embedding = BatchIndexed(model.embedding)
    tokens = torch.arange(8)[None]  # (1, N)
    swapped = tokens.clone()
    swapped[:, [1, 4]] = tokens[:, [4, 1]]
    y, z = model(tokens)[:, -1], model(swapped)[:, -1]
    return ((y - z).norm() / y.norm()).item()


class NaiveCausalLinformer(nn.Module):
    """Linformer's attention (Wang et al. 2020, eq. 7) made causal in the obvious way, which is
    wrong.

        y_n = sum_r softmax_r(q_n · (E k)_r / sqrt(D)) (F v)_r,  over rows r that "have been"

    The mask lets position n see the first rows only, as many of R as n has of N. But every row of
    E k and F v is a sum over all N positions, later ones too.
    """

    def __init__(self, seq_len: int, n_rows: int, generator: torch.Generator):
        super().__init__()
        for name, size in (("seq_len", seq_len), ("n_rows", n_rows)):
            if size < 1:
                raise ValueError(f"{name} {size}: use 1 or more")
        self.keys, self.values = (
            nn.Parameter(torch.randn(n_rows, seq_len, generator=generator) / math.sqrt(seq_len))
            for _ in range(2)
        )

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, causal: bool = True) -> Tensor:
        """(B, H, N, D) each -> (B, H, N, D)."""
        k = torch.einsum("rn,bhnd->bhrd", self.keys, k)
        v = torch.einsum("rn,bhnd->bhrd", self.values, v)
        weights = torch.einsum("bhnd,bhrd->bhnr", q, k) / math.sqrt(q.shape[-1])
        if causal:
            weights = weights.masked_fill(self._not_yet(), float("-inf"))
        return torch.einsum("bhnr,bhrd->bhnd", weights.softmax(-1), v)

    def _not_yet(self) -> Tensor:
        """(N, R): True where row r stands, in proportion, after position n."""
        n_rows, seq_len = self.keys.shape
        row = torch.arange(n_rows, device=self.keys.device)
        position = torch.arange(seq_len, device=self.keys.device)[:, None]
        return row > position * n_rows // seq_len


@torch.no_grad()
def future_leak(attend: Callable[..., Tensor], *, seq_len: int, seed: int = 0) -> float:
    """How far outputs move, relative to their size, when all that comes after them is changed: the
    median over positions. 0 for what is causal.

    Args:
        attend: a function of q, k, v (1, 1, N, 16) and `causal=True`.
    """
    generator = torch.Generator().manual_seed(seed)
    now, other = (
        [torch.randn(1, 1, seq_len, 16, generator=generator) for _ in range(3)] for _ in range(2)
    )
    y, moved = attend(*now, causal=True), []
    for n in range(seq_len - 1):
        pairs = zip(now, other, strict=True)
        changed = [torch.cat([a[:, :, : n + 1], b[:, :, n + 1 :]], dim=2) for a, b in pairs]
        difference = attend(*changed, causal=True)[:, :, n] - y[:, :, n]
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
    linformer = NaiveCausalLinformer(16, 8, torch.Generator().manual_seed(0))
    leaks = [future_leak(attend, seq_len=16) for attend in (softmax_attention, linformer)]
    order = [order_seen(broken=broken) for broken in (False, True)]
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
