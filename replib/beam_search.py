"""Beam search: the likeliest translations that are found by keeping several at every token.

B batch, K beams, N' source length, V vocabulary.
"""

import torch
from torch import Tensor

from replib.generation import Decoder
from replib.models import EncoderDecoder

MAX_BEAM = 64  # more is taken for a slip


@torch.inference_mode()
def beam_search(
    model: EncoderDecoder,
    source: Tensor,
    start: int,
    end: int,
    max_len: int,
    *,
    beam: int = 4,
    length_penalty: float = 1.0,
    source_padding_mask: Tensor | None = None,
) -> Tensor:
    """Decode from a source (B, N') by the highest log-probability over lp = ((5 + n) / 6)^α of n
    tokens, the end among them (Wu et al. 2016, eq. 14, without coverage).

    At each token the K best continuations of a sentence are looked at: those that end are kept as
    candidates, and the K best that do not go on. A sentence is done with K candidates; at the last
    token all are. One beam is greedy decoding.

    Args:
        length_penalty: α; 0 compares log-probabilities, more favours longer translations.
        source_padding_mask: (B, N') bool, True at padding.

    Returns:
        (B, at most max_len) tokens without the start; rows that ended earlier repeat `end`.

    Raises:
        ValueError: the beam is out of range.
    """
    if not 1 <= beam <= MAX_BEAM:
        raise ValueError(f"beam {beam}: use 1 to {MAX_BEAM}")
    was_training = model.training
    memory = model.eval().encode(source, source_padding_mask)
    model.train(was_training)
    n, device = len(source), source.device
    masking = {}
    if source_padding_mask is not None:
        masking = {"source_padding_mask": source_padding_mask.repeat_interleave(beam, dim=0)}
    memory = memory.repeat_interleave(beam, dim=0)
    decoder = Decoder(model, n * beam, max_len=max_len, memory=memory, **masking)
    logits = decoder.prefill(source.new_full((n * beam, 1), start))

    scores = torch.full((n, beam), -torch.inf, device=device)  # log-probabilities of the beams
    scores[:, 0] = 0  # all beams begin alike
    tokens = source.new_full((n, beam, max_len), end)
    best, best_score = tokens[:, 0].clone(), torch.full((n,), -torch.inf, device=device)
    n_ended = torch.zeros(n, dtype=torch.long, device=device)
    first_row = beam * torch.arange(n, device=device).unsqueeze(1)
    for i in range(max_len):
        following = scores.unsqueeze(-1) + logits.float().log_softmax(-1).view(n, beam, -1)
        n_classes = following.shape[-1]
        # Of 2 K at most K end, one a beam.
        found, place = following.flatten(1).topk(min(2 * beam, beam * n_classes), dim=1)
        origin, token = place // n_classes, place % n_classes
        ends = token == end if i + 1 < max_len else torch.ones_like(token, dtype=torch.bool)
        looked_at = torch.arange(found.shape[1], device=device) < beam
        candidates = ends & looked_at & found.isfinite() & (n_ended < beam).unsqueeze(1)

        normal = found.masked_fill(~candidates, -torch.inf) / ((6 + i) / 6) ** length_penalty
        score, which = normal.max(dim=1)
        better = score > best_score
        chosen = tokens[torch.arange(n, device=device), origin.gather(1, which[:, None])[:, 0]]
        chosen = chosen.clone()
        chosen[:, i] = token.gather(1, which[:, None])[:, 0]
        best = torch.where(better.unsqueeze(1), chosen, best)
        best_score = torch.where(better, score, best_score)
        n_ended += candidates.sum(1)
        if i + 1 == max_len or (n_ended >= beam).all():
            break

        scores, kept = found.masked_fill(ends, -torch.inf).topk(beam, dim=1)
        origin, token = origin.gather(1, kept), token.gather(1, kept)
        tokens = tokens.gather(1, origin.unsqueeze(-1).expand(-1, -1, max_len)).clone()
        tokens[:, :, i] = token
        if beam > 1:
            decoder.reorder((first_row + origin).flatten())
        logits = decoder.step(token.flatten())
    return best[:, : i + 1]
