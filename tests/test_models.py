"""Models take any mechanism of the registry, see no future, and decode as they predict."""

import pytest
import torch

from replib.attention import ATTENTION
from replib.generation import continue_greedily, translate_greedily
from replib.models import (
    CausalTransformer,
    Dropout,
    EncoderDecoder,
    TransformerConfig,
    set_dropout_generator,
)

VOCAB, MAX_LEN = 7, 80


def small(attention="linear", **changes):
    options = {"n_layers": 2, "n_heads": 2, "d_model": 16, "d_feedforward": 32, "dropout": 0.0}
    return TransformerConfig(attention=attention, **options | changes)


def build(cls, config, seed=0):
    torch.manual_seed(seed)
    return cls(config, vocab_size=VOCAB, max_len=MAX_LEN).double().eval()


def random_tokens(n, seed=0, b=3):
    return torch.randint(0, VOCAB, (b, n), generator=torch.Generator().manual_seed(seed))


DENSE = ("softmax", "linear", "performer")  # every query sees every key
CONFIGS = [
    small(name, norm=norm, positions=positions)
    for name in ATTENTION
    for norm, positions in (("post", "concatenated"), ("pre", "added"))
]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_causal_model_sees_no_later_token(config):
    model, tokens = build(CausalTransformer, config), random_tokens(70)
    changed = tokens.clone()
    changed[:, 40] = (changed[:, 40] + 1) % VOCAB
    before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :40], after[:, :40])
    seen = (before[:, 40:] != after[:, 40:]).any(-1)
    assert seen[:, 0].all() and seen.double().mean() > 0.5
    if config.attention in DENSE:
        assert seen.all()


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_decoder_sees_no_later_token_and_all_of_the_source(config):
    model, source, tokens = build(EncoderDecoder, config), random_tokens(9), random_tokens(8, 1)
    changed = tokens.clone()
    changed[:, 5] = (changed[:, 5] + 1) % VOCAB
    before, after = model(source, tokens), model(source, changed)
    torch.testing.assert_close(before[:, :5], after[:, :5], rtol=0, atol=1e-14)
    assert (before[:, 5:] - after[:, 5:]).abs().amax(-1).gt(1e-9).all()
    source[:, -1] = (source[:, -1] + 1) % VOCAB
    assert (before - model(source, tokens)).abs().amax(-1).gt(1e-9).all()


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_stepping_a_causal_model_gives_its_parallel_logits(config):
    model, tokens = build(CausalTransformer, config), random_tokens(70)
    state, stepped = model.init_state(len(tokens)), []
    for i in range(tokens.shape[1]):
        logits, state = model.step(state, tokens[:, i], i)
        stepped.append(logits)
    torch.testing.assert_close(torch.stack(stepped, 1), model(tokens), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_greedy_continuation_is_the_argmax_of_the_whole_sequence(config):
    model, prompt = build(CausalTransformer, config), random_tokens(11)
    produced = continue_greedily(model, prompt, 6)
    whole = torch.cat([prompt, produced], 1)
    assert produced.shape == (3, 6)
    assert torch.equal(model(whole)[:, 10:-1].argmax(-1), produced)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_greedy_translation_is_the_argmax_of_teacher_forcing(config):
    model, source, start = build(EncoderDecoder, config), random_tokens(9), 1
    produced = translate_greedily(model, source, start, end=VOCAB, max_len=12)
    assert produced.shape == (3, 12)  # an end that is no class never comes
    given = torch.cat([torch.full((3, 1), start), produced[:, :-1]], 1)
    assert torch.equal(model(source, given).argmax(-1), produced)


def test_greedy_translation_stops_at_the_end_token():
    model, source = build(EncoderDecoder, small()), random_tokens(9)
    free = translate_greedily(model, source, 1, end=VOCAB, max_len=12)
    end = int(free[0, 3])
    produced = translate_greedily(model, source[:1], 1, end=end, max_len=12)
    assert produced.shape[1] == int((free[0] == end).nonzero()[0]) + 1


def test_an_empty_prompt_is_refused():
    with pytest.raises(ValueError, match="at least one token"):
        continue_greedily(build(CausalTransformer, small()), random_tokens(0), 3)


def test_the_paper_model_has_its_sizes():
    """4 layers, 8 heads of 32, feed-forward 1024, 128 + 128 embedding: counted by hand."""
    model = CausalTransformer(TransformerConfig(), vocab_size=11, max_len=128)
    e, f = 256, 1024
    block = 3 * (e * e + e) + (e * e + e) + (e * f + f) + (f * e + e) + 2 * 2 * e
    expected = 11 * 128 + 4 * block + 2 * e + (e * 11 + 11)
    assert sum(p.numel() for p in model.parameters()) == expected


def test_dropout_keeps_the_mean_and_follows_its_generator():
    dropout, x = Dropout(0.1), torch.ones(1000, 1001)
    draws = []
    for seed in (0, 0, 1):
        set_dropout_generator(dropout, torch.Generator().manual_seed(seed))
        draws.append(dropout(x))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert abs(draws[0].mean().item() - 1) < 0.002
    assert abs((draws[0] == 0).double().mean().item() - 26 / 256) < 0.002
    assert torch.equal(dropout.eval()(x), x)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"attention": "flash"}, "unknown attention 'flash': use softmax, linear"),
        ({"implementation": "cuda9"}, "has no implementation 'cuda9'"),
        ({"n_heads": 3}, "use d_model 18, or other n_heads"),
        ({"n_heads": 0}, "n_heads 0: use 1 to"),
        ({"d_model": 10**9}, "use 1 to"),
        ({"norm": "none"}, "use 'post' or 'pre'"),
        ({"positions": "rotary"}, "use 'concatenated' or 'added'"),
        ({"dropout": 1.0}, "use 0 to below 1"),
    ],
)
def test_impossible_sizes_are_refused_with_the_remedy(changes, message):
    with pytest.raises(ValueError, match=message):
        small(**changes)


def test_a_position_beyond_the_model_is_refused():
    with pytest.raises(ValueError, match="build it for a longer sequence"):
        build(CausalTransformer, small())(random_tokens(MAX_LEN + 1))
