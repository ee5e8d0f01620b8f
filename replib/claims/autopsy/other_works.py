"""Defects of other earlier works, each re-enacted small enough to be seen by running it.

A BLEU that scores the first translation alone, positions that are taken from the batch, a
Linformer that sees the future when it is made causal, a GPU timed without waiting for it, and an
encoder half of which is computed for nothing.

B batch, H heads, N sequence length, D size per head, E model size, R projected length (rows).
"""

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from replib.claims.autopsy.defects import break_model
from replib.device import resolve_device
from replib.models import CausalTransformer, EncoderDecoder, MultiHeadAttention, TransformerConfig

# A little English: three choices in each of four places, twice, and three links.
SUBJECTS = ("the old farmer", "a young doctor", "my neighbour")
VERBS = ("sold", "found", "painted")
OBJECTS = ("a red bicycle", "the wooden boat", "seven small houses")
PLACES = ("near the river", "in the city", "behind the school")
LINKS = ("and later", "while", "before")
N_PAIRS = 3003  # sentences that the earlier work was tested on
RUIN = "nothing"  # what stands for a ruined translation: it has no word of any reference

# A language model that learns in a second.
N_SYMBOLS, SEQ_LEN, PERIOD = 10, 16, 4
N_STEPS, BATCH, HELD_OUT, LEARNING_RATE = 300, 32, 32 * 32, 5e-3


@dataclass(frozen=True)
class Score:
    """A corpus BLEU, from 0 to 100, and how many words of the translations it counted."""

    bleu: float
    n_words: int


@dataclass(frozen=True)
class Scores:
    """BLEU of some translations by the right call and by the earlier work's."""

    right: Score
    wrong: Score


@dataclass(frozen=True)
class Losses:
    """Held-out losses of two runs that differ in a defect, nats a token; `floor` is the least that
    a model without the defect can reach."""

    mended: float
    broken: float
    floor: float = 0.0


@dataclass(frozen=True)
class HalfEncoder:
    """An encoder that computes layers for nothing, beside one that has only those it uses: the
    largest difference of what they encode, how many layers they apply, and the least milliseconds
    of some repeats, which other work on the machine disturbs least."""

    difference: float
    n_applied: int
    n_used: int
    broken_ms: float
    half_ms: float


@dataclass(frozen=True)
class Timings:
    """Milliseconds of the same work by the same clock, with and without waiting for its end."""

    synchronised: float
    unsynchronised: float


def small_corpus(n_sentences: int, seed: int = 0) -> tuple[list[str], list[str]]:
    """Translations and their references: a translation is its reference with about one word in
    six dropped or replaced by another of the corpus."""
    if n_sentences < 2:
        raise ValueError(f"n_sentences {n_sentences}: use 2 or more")
    drawn = random.Random(seed)
    references = [_sentence(drawn) for _ in range(n_sentences)]
    words = sorted({word for reference in references for word in reference.split()})
    translations = []
    for reference in references:
        kept = (_retold(word, words, drawn) for word in reference.split())
        translations.append(" ".join(filter(None, kept)))
    return translations, references


def _sentence(drawn: random.Random) -> str:
    first, second = (
        " ".join(drawn.choice(words) for words in (SUBJECTS, VERBS, OBJECTS, PLACES))
        for _ in range(2)
    )
    return f"{first} {drawn.choice(LINKS)} {second}"


def _retold(word: str, words: Sequence[str], drawn: random.Random) -> str | None:
    chance = drawn.random()
    return None if chance < 0.08 else drawn.choice(words) if chance < 0.16 else word


def bleu_scores(translations: Sequence[str], references: Sequence[str]) -> Scores:
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
    sets = {"right": [list(references)], "wrong": [[s] for s in references]}
    found = {name: corpus_bleu(list(translations), some) for name, some in sets.items()}
    return Scores(**{name: Score(one.score, one.sys_len) for name, one in found.items()})


def ruined_but_first(translations: Sequence[str]) -> list[str]:
    """The translations, all but the first of which say nothing."""
    first, *others = translations
    return [first, *(RUIN for _ in others)]


class BatchIndexed(nn.Module):
    """An embedding whose positions count the sequences of the batch: what comes of positions made
    for tensors (N, B, E) when they are given (B, N, E). All tokens of a sequence get the same."""

    def __init__(self, embedding: nn.Module):
        super().__init__()
        self.embedding = embedding

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N) -> (B, N, E)."""
        sequence = torch.arange(len(tokens), device=tokens.device)
        return self.embedding.step(tokens, sequence[:, None])


def position_losses(*, n_steps: int = N_STEPS, seed: int = 0) -> Losses:
    """Train a language model of one layer on sequences that repeat every PERIOD symbols, with
    positions of the sequence and of the batch: without order it knows which symbols come, not when.

    Its loss is that of the symbols after the first period, which can be known.
    """
    losses = []
    for broken in (False, True):
        generator = torch.Generator().manual_seed(seed)
        model = _language_model(generator)
        if broken:
            model.embedding = BatchIndexed(model.embedding)
        losses.append(_trained_loss(model, _repeating, n_steps, generator, slice(PERIOD, None)))
    return Losses(*losses)


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


def prediction_losses(*, n_steps: int = N_STEPS, seed: int = 0) -> Losses:
    """Train a model to predict the next of symbols that are drawn at random, which nobody can: with
    softmax attention, and with `NaiveCausalLinformer`, which looks it up."""
    losses = []
    for broken in (False, True):
        generator = torch.Generator().manual_seed(seed)
        model = _language_model(generator)
        if broken:
            linformer = NaiveCausalLinformer(SEQ_LEN, SEQ_LEN // 2, generator)
            model.blocks[0].self_attention.attention = linformer
        # The last position has no later one to look up.
        losses.append(_trained_loss(model, _random, n_steps, generator, slice(SEQ_LEN - 1)))
    return Losses(*losses, floor=math.log(N_SYMBOLS))


def _random(batch_size: int, generator: torch.Generator) -> Tensor:
    return torch.randint(N_SYMBOLS, (batch_size, SEQ_LEN + 1), generator=generator)


def _repeating(batch_size: int, generator: torch.Generator) -> Tensor:
    period = torch.randint(N_SYMBOLS, (batch_size, PERIOD), generator=generator)
    return period.repeat(1, SEQ_LEN // PERIOD + 1)[:, : SEQ_LEN + 1]


def _language_model(generator: torch.Generator) -> CausalTransformer:
    """One layer with softmax attention, whose parameters come from the generator."""
    config = TransformerConfig(
        attention="softmax",
        n_layers=1,
        n_heads=2,
        d_model=64,
        d_feedforward=128,
        norm="pre",
        dropout=0.0,
    )
    return _drawn(CausalTransformer(config, vocab_size=N_SYMBOLS, max_len=SEQ_LEN), generator)


def _drawn(model: nn.Module, generator: torch.Generator) -> nn.Module:
    """The model with parameters from the generator."""
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, generator=generator)
        if isinstance(module, nn.Linear):
            bound = 1 / math.sqrt(module.in_features)
            nn.init.uniform_(module.weight, -bound, bound, generator=generator)
            nn.init.zeros_(module.bias)
    return model


def _trained_loss(
    model: nn.Module,
    draw: Callable[[int, torch.Generator], Tensor],
    n_steps: int,
    generator: torch.Generator,
    scored: slice,
) -> float:
    """Train on fresh batches (B, N + 1) and return the loss of held-out ones of the same size, nats
    a token of the positions that are scored. Positions of the batch are those that it has seen."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)

    def loss_of(tokens: Tensor) -> Tensor:
        logits, targets = model(tokens[:, :-1])[:, scored], tokens[:, 1:][:, scored]
        return cross_entropy(logits.flatten(0, 1), targets.flatten())

    for _ in range(n_steps):
        optimizer.zero_grad()
        loss_of(draw(BATCH, generator)).backward()
        optimizer.step()
    with torch.no_grad():
        batches = draw(HELD_OUT, generator).split(BATCH)
        return sum(loss_of(one).item() for one in batches) / len(batches)


@torch.no_grad()
def half_encoder(*, seq_len: int = 64, n_repeats: int = 25) -> HalfEncoder:
    """The 2022 replication's encoder, which applies its second layer in place of the later ones for
    nothing, beside a model whose encoder is its first two layers."""
    config = TransformerConfig(n_layers=4, n_heads=4, d_model=64, d_feedforward=128, dropout=0.0)
    generator = torch.Generator().manual_seed(0)
    broken = EncoderDecoder(config, vocab_size=N_SYMBOLS, max_len=seq_len).eval()
    half = deepcopy(_drawn(broken, generator))
    half.encoder = half.encoder[: config.n_layers // 2]
    break_model(broken, ("reused_encoder",))
    source = torch.randint(N_SYMBOLS, (8, seq_len), generator=generator)
    applied = Counter()
    models = {"broken": broken, "half": half}
    for name, model in models.items():
        for attend in (m for m in model.encoder.modules() if isinstance(m, MultiHeadAttention)):
            attend.register_forward_hook(lambda *_, name=name: applied.update([name]))
    encoded = {name: model.encode(source) for name, model in models.items()}
    counts = dict(applied)
    times: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(n_repeats):
        for name, model in models.items():
            started = perf_counter()
            model.encode(source)
            times[name].append((perf_counter() - started) * 1000)
    return HalfEncoder(
        difference=(encoded["broken"] - encoded["half"]).abs().max().item(),
        n_applied=counts["broken"],
        n_used=counts["half"],
        broken_ms=min(times["broken"]),
        half_ms=min(times["half"]),
    )


def timings(device: str | None = None, *, size: int = 4096, n_repeats: int = 5) -> Timings:
    """The median time of a matrix product on a GPU, by a clock that waits for it and by one that
    does not: the second has timed how long it takes to ask.

    Raises:
        ValueError: it needs a CUDA device, where work goes on after a call returns.
    """
    found = resolve_device(device)
    if found.type != "cuda":
        raise ValueError(
            "it needs a CUDA device: on a CPU a call returns when its work is done, so that there "
            "is nothing to wait for"
        )
    generator = torch.Generator(device=found).manual_seed(0)
    x = torch.randn(size, size, device=found, generator=generator)
    x @ x  # the first call sets up the library
    medians = []
    for wait in (True, False):
        times = sorted(_product_ms(x, found, wait) for _ in range(n_repeats))
        medians.append(times[n_repeats // 2])
    return Timings(*medians)


def _product_ms(x: Tensor, device: torch.device, wait: bool) -> float:
    torch.cuda.synchronize(device)
    started = perf_counter()
    x @ x
    if wait:
        torch.cuda.synchronize(device)
    return (perf_counter() - started) * 1000
