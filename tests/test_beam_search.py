"""Beam search against all translations that there are, and against greedy decoding."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from choices import CAUSAL

from replib.attention import ATTENTION
from replib.beam_search import beam_search
from replib.generation import translate_greedily
from replib.models import EncoderDecoder, TransformerConfig

VOCAB, START, END = 5, 1, 2
SMALL = TransformerConfig(
    attention="softmax", n_layers=2, n_heads=2, d_model=16, d_feedforward=32, dropout=0.0
)


def build(config=SMALL, seed=0):
    torch.manual_seed(seed)
    model = EncoderDecoder(config, vocab_size=VOCAB, max_len=30).double().eval()
    with torch.no_grad():  # far from uniform, so that hypotheses differ
        model.head.weight *= 6
    return model


def of(n, seed=0, b=4):
    return torch.randint(0, VOCAB, (b, n), generator=torch.Generator().manual_seed(seed))


def padding(n=7):
    mask = torch.zeros(4, n, dtype=torch.bool)
    mask[0, 4:] = mask[2, 6:] = True
    return mask


def log_probabilities(model, source, found, mask):
    """Of hypotheses up to their first ends, from whole sequences at once; what follows a shorter
    one counts for nothing, as no token sees a later one."""
    longest = max(map(len, found))
    tokens = torch.tensor([[*x, *[END] * (longest - len(x))] for x in found])
    given = torch.cat([torch.full_like(tokens[:, :1], START), tokens[:, :-1]], dim=1)
    source, mask = (x.expand(len(found), -1) for x in (source, mask))
    logits = model(source, given, mask).log_softmax(-1)
    of_tokens = logits.gather(-1, tokens[..., None])[..., 0]
    real = torch.arange(longest) < torch.tensor([[len(x)] for x in found])
    return (of_tokens * real).sum(1).tolist()


def hypotheses(max_len):
    """All that end, or are as long as may be."""
    others = [x for x in range(VOCAB) if x != END]
    for n in range(max_len):
        yield from ([*x, END] for x in product(others, repeat=n))
    yield from (list(x) for x in product(others, repeat=max_len))


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0, 2.0])
def test_a_beam_that_holds_everything_finds_the_best_of_all(alpha):
    model, source, mask = build(), of(7), padding()
    options = {"beam": 64, "length_penalty": alpha, "source_padding_mask": mask}
    found = beam_search(model, source, START, END, 3, **options).tolist()
    lengths = set()
    for i, tokens in enumerate(found):
        every = [*hypotheses(3)]
        logs = log_probabilities(model, source[i : i + 1], every, mask[i : i + 1])
        scores = [p / ((5 + len(x)) / 6) ** alpha for p, x in zip(logs, every, strict=True)]
        best = every[scores.index(max(scores))]
        assert tokens[: len(best)] == best and set(tokens[len(best) :]) <= {END}
        lengths.add(len(best))
    assert lengths


@pytest.mark.parametrize("end", [END, VOCAB])
@pytest.mark.parametrize("seed", range(4))
def test_one_beam_is_greedy(seed, end):
    model, source, mask = build(seed=seed), of(7, seed), padding()
    greedy = translate_greedily(model, source, START, end, 12, mask)
    found = beam_search(model, source, START, end, 12, beam=1, source_padding_mask=mask)
    assert torch.equal(found, greedy)


def kinds():
    for name in CAUSAL:
        yield replace(SMALL, attention=name)
    linformer = ATTENTION["linformer"].Options(k=3)
    of_linformer = replace(SMALL, attention="linformer", options=linformer)
    yield replace(of_linformer, decoder_attention="softmax")
    yield replace(of_linformer, decoder_attention="linear", cross_attention="softmax")
    yield replace(SMALL, decoder_attention="linear", cross_attention="linformer")
    yield replace(SMALL, tied=True, positions="added", norm="pre")


def recomputed(model, source, mask, beam, max_len, alpha):
    """Beam search of one sentence by the whole model again at every token, in plain lists."""
    live, ended = [(0.0, [])], []
    for n in range(1, max_len + 1):
        given = torch.tensor([[START, *tokens] for _, tokens in live])
        many = source.expand(len(live), -1), mask.expand(len(live), -1)
        logits = model(many[0], given, many[1])[:, -1].log_softmax(-1)
        found = [
            (score + logits[i, token].item(), [*tokens, token])
            for i, (score, tokens) in enumerate(live)
            for token in range(VOCAB)
        ]
        found.sort(reverse=True)
        for score, tokens in found[:beam]:
            if (tokens[-1] == END or n == max_len) and len(ended) < beam:
                ended.append((score / ((5 + n) / 6) ** alpha, tokens))
        if len(ended) >= beam:
            break
        live = [one for one in found if one[1][-1] != END][:beam]
    return max(ended)[1]


@pytest.mark.parametrize(
    "config", list(kinds()), ids=lambda c: f"{c.attention}-{c.cross_attention}"
)
def test_decoding_from_states_is_decoding_by_the_whole_model_again(config):
    model, source, mask = build(config), of(7), padding()
    options = {"beam": 3, "length_penalty": 0.8, "source_padding_mask": mask}
    found = beam_search(model, source, START, END, 9, **options).tolist()
    for i, tokens in enumerate(found):
        expected = recomputed(model, source[i : i + 1], mask[i : i + 1], 3, 9, 0.8)
        assert tokens[: len(expected)] == expected and set(tokens[len(expected) :]) <= {END}


def test_a_model_goes_on_training_after_a_search():
    model = build().train()
    beam_search(model, of(7), START, END, 3)
    assert model.training


@pytest.mark.parametrize("beam", [0, 65])
def test_a_beam_out_of_range_is_refused(beam):
    with pytest.raises(ValueError, match=f"beam {beam}: use 1 to 64"):
        beam_search(build(), of(7), START, END, 3, beam=beam)
