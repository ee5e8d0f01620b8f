"""What a trained translator is scored by: perplexity, BLEU and chrF of a test, and how often a
translation is right to the letter."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from replib.beam_search import beam_search
from replib.generation import translate_greedily
from replib.tasks.copy import Batch
from replib.tasks.translation import NumberWords, Translating
from replib.training import Training

BATCH = 100  # sentences that are decoded at once
BEAM, LENGTH_PENALTY = 4, 1.0
# Words of a source, the most of each group: those that the published outputs were sorted by, with
# more of the shorter ones, as captions are short.
LENGTHS = (8, 10, 12, 15, 20, 30, 45)
LONGEST_FACTOR, LONGEST_MORE = 2, 10  # a translation has at most so many tokens more than a source


def scores(training: Training) -> dict:
    """The figures of a row: of the whole test, and by the length of the source.

    `perplexity` is of a token of this vocabulary and `perplexity_per_char` of a letter of the
    references, which alone compares vocabularies. `bleu` is of greedy translations; sentences that
    are drawn have `exact`, the share that is right to the letter, in its place.
    """
    task, model = training.config.task, training.model
    was_training = model.training
    model.eval()
    sources, references = task.test_texts()
    nats, counts = (torch.cat(x) for x in zip(*_losses(training), strict=True))  # of each sentence
    translated = translations(training)
    model.train(was_training)
    n_chars = sum(map(len, references)) + len(references)  # and the end of each
    found = {
        "n_test": len(sources),
        "n_parameters": sum(x.numel() for x in model.parameters()),
        "perplexity": _perplexity(nats, counts),
        "perplexity_per_char": math.exp(min(nats.sum().item() / n_chars, 80.0)),
    }
    drawn = isinstance(task, NumberWords)
    if drawn:
        found["exact"] = exact(translated, references)
    else:
        found |= corpus_scores(translated, references)
        found["bleu_beam"] = corpus_scores(translations(training, BEAM), references)["bleu"]
        found["text_digest"] = task.text.digest
    groups = []
    for most, places in by_length(sources).items():
        some = [translated[i] for i in places], [references[i] for i in places]
        quality = {"exact": exact(*some)} if drawn else {"bleu": corpus_scores(*some)["bleu"]}
        own = torch.tensor(places)
        group = {"words": most, "n": len(places), "perplexity": _perplexity(nats[own], counts[own])}
        groups.append(group | quality)
    return found | {"by_length": groups}


def _losses(training: Training) -> Iterator[tuple[Tensor, Tensor]]:
    """Nats and tokens of each test sentence, (B,), on the CPU."""
    for batch in training.config.task.test_batches(BATCH, training.device):
        yield _nats(training, batch), batch.in_loss.sum(1).cpu()


@torch.inference_mode()
def _nats(training: Training, batch: Batch) -> Tensor:
    logits = training.model(*batch.inputs)
    nats = cross_entropy(logits.transpose(1, 2).float(), batch.targets, reduction="none")
    return nats.masked_fill(~batch.in_loss, 0).sum(1).double().cpu()


def _perplexity(nats: Tensor, counts: Tensor) -> float:
    # exp of more is infinite in a row.
    return math.exp(min((nats.sum() / counts.sum()).item(), 80.0))


def translations(
    training: Training, beam: int = 1, texts: Sequence[str] | None = None
) -> list[str]:
    """What the model makes of the test, or of other texts: by beam search, greedily with one."""
    task = training.config.task
    sources = task.encode(task.test_texts()[0] if texts is None else texts)
    order = sorted(range(len(sources)), key=lambda i: len(sources[i]))  # less padding
    found = [""] * len(sources)
    for first in range(0, len(order), BATCH):
        places = order[first : first + BATCH]
        for i, ids in zip(
            places, decode(training, [sources[i] for i in places], beam), strict=True
        ):
            found[i] = task.decode(ids)
    return found


def decode(training: Training, sources: Sequence[Sequence[int]], beam: int = 1) -> list[list[int]]:
    """The ids of translations of sources; a row ends with the end token, which is repeated."""
    task: Translating = training.config.task
    source, mask = task.source(sources, training.device)
    max_len = min(task.seq_len, LONGEST_FACTOR * source.shape[1] + LONGEST_MORE)
    sizes = task.start, task.end, max_len
    if beam == 1:
        return translate_greedily(training.model, source, *sizes, mask).tolist()
    options = {"beam": beam, "length_penalty": LENGTH_PENALTY, "source_padding_mask": mask}
    return beam_search(training.model, source, *sizes, **options).tolist()


def exact(translated: Sequence[str], references: Sequence[str]) -> float:
    """The share of translations that are the reference, to the letter."""
    same = [x == y for x, y in zip(translated, references, strict=True)]
    return sum(same) / len(same)


def corpus_scores(translated: Sequence[str], references: Sequence[str]) -> dict:
    """BLEU and chrF2 of a corpus with one reference a sentence, and how they were computed.

    sacrebleu takes a list of references, each a list of sentences; a list of sentences that each
    have a list of references is taken for as many references of one sentence, and only the first
    translation is scored.
    """
    from sacrebleu.metrics import BLEU, CHRF

    found = {}
    for name, metric in (("bleu", BLEU()), ("chrf", CHRF())):
        found[name] = metric.corpus_score(list(translated), [list(references)]).score
        found[f"{name}_signature"] = str(metric.get_signature())
    return found


def by_length(sources: Sequence[str]) -> dict[int | None, list[int]]:
    """The places of sources by the most words of their group, the shortest first; None is the group
    without a most."""
    groups: dict[int | None, list[int]] = {most: [] for most in (*LENGTHS, None)}
    for i, text in enumerate(sources):
        n = len(text.split())
        groups[next((most for most in LENGTHS if n <= most), None)].append(i)
    return {most: places for most, places in groups.items() if places}
