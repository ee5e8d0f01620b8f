"""Models take any mechanism of the registry, see no future, and decode as they predict."""

import io
import pickle
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from choices import CAUSAL
from torch.utils.checkpoint import checkpoint

from replib.generation import generate, translate_greedily
from replib.layers import Dropout, set_dropout_generator
from replib.models import CausalTransformer, EncoderDecoder, TransformerConfig

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
    for name in CAUSAL
    for norm, positions in (("post", "concatenated"), ("pre", "added"))
]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_causal_model_sees_no_later_token(config):
    model, tokens = build(CausalTransformer, config), random_tokens(70)
    changed = tokens.clone()
    changed[:, 40] = (changed[:, 40] + 1) % VOCAB
    before, after = model(tokens), model(changed)
    # Performer divides features by the largest of all keys, which cancels but for rounding.
    rounding = 1e-12 if config.attention == "performer" else 0
    torch.testing.assert_close(before[:, :40], after[:, :40], rtol=0, atol=rounding)
    seen = ((before[:, 40:] - after[:, 40:]).abs() > rounding).any(-1)
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
    produced = generate(model, prompt, 6)
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
        generate(build(CausalTransformer, small()), random_tokens(0), 3)


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
        ({"kernel": "cuda9"}, "has no kernel 'cuda9'"),
        ({"n_heads": 3}, "use d_model 18, or other n_heads"),
        ({"n_heads": 0}, "n_heads 0: use 1 to"),
        ({"d_model": 10**9}, "use 1 to"),
        ({"norm": "none"}, "use post, pre"),
        ({"positions": "rotary"}, "use concatenated, added, learned, none, batch row"),
        ({"dropout": 1.0}, "use 0 to below 1"),
        ({"embedding_dropout": 1.0}, "embedding_dropout 1.0: use 0 to below 1"),
        ({"n_heads": 4, "n_kv_heads": 3}, "n_kv_heads 3 does not divide n_heads 4"),
        ({"n_kv_heads": 0}, "use a divisor of it"),
    ],
)
def test_impossible_sizes_are_refused_with_the_remedy(changes, message):
    with pytest.raises(ValueError, match=message):
        small(**changes)


def test_a_position_beyond_the_model_is_refused():
    with pytest.raises(ValueError, match="build it for a longer sequence"):
        build(CausalTransformer, small())(random_tokens(MAX_LEN + 1))


# Sequences of different lengths

every_mechanism = pytest.mark.parametrize("name", CAUSAL)
PAD = VOCAB - 1


def padding_of(side, n):
    """Row 0 has padding on a side, or on both, rows 1 and 2 none."""
    mask = torch.zeros(3, n, dtype=torch.bool)
    if side in ("left", "both"):
        mask[0, :4] = True
    if side in ("right", "both"):
        mask[0, -5:] = True
    return mask


def with_padding(tokens, mask):
    """A token at padding that no model has."""
    return tokens.masked_fill(mask, -100)


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-9)


def gradient(y, model):
    """Of the weights of the blocks and the embedding, all in one vector."""
    options = {"allow_unused": True, "retain_graph": True}
    found = torch.autograd.grad(y.square().sum(), list(model.parameters()), **options)
    return torch.cat([g.flatten() for g in found if g is not None])


@every_mechanism
@pytest.mark.parametrize("side", ["left", "right", "both"])
@pytest.mark.parametrize("form", ["forward", "prefill"])
def test_a_padded_row_gives_the_logits_of_the_row_alone(name, side, form):
    model, tokens = build(CausalTransformer, small(name)), random_tokens(45)
    mask = padding_of(side, 45)
    given, real = with_padding(tokens, mask), ~mask[0]
    if form == "forward":
        logits = model(given, mask)
    else:
        logits, state = model.prefill(model.init_state(3), given, mask)
    alone = model(tokens[:1, real])
    close(logits[:1, real], alone)
    close(logits[1:], model(tokens[1:]))
    found = gradient(logits[:1, real], model)
    assert found.isfinite().all()
    close(found, gradient(alone, model))
    if form == "prefill":  # and goes on so, by a token, by several, and by several with padding
        more = random_tokens(6, seed=2)
        first, after = model.step(state, more[:, 0])
        rest, _ = model.prefill(after, more[:, 1:])
        late = torch.zeros_like(more[:, 1:], dtype=torch.bool)
        late[0, 2:] = True
        some, _ = model.prefill(after, more[:, 1:], late)
        for row, kept in ((0, real), (1, slice(None))):
            whole = torch.cat([tokens[row : row + 1, kept], more[row : row + 1]], 1)
            expected = model(whole)[0, -6:]
            close(torch.cat([first[row, None], rest[row]]), expected)
            close(some[row, :2], expected[1:3])


@every_mechanism
def test_the_embedding_of_padding_takes_no_part(name):
    model, tokens = build(CausalTransformer, small(name)), random_tokens(20) % PAD
    mask = padding_of("left", 20)
    expected = model(tokens, mask)
    with torch.no_grad():
        model.embedding.tokens.weight[PAD] = torch.nan
    close(model(tokens.masked_fill(mask, PAD), mask)[~mask], expected[~mask])


@every_mechanism
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_of_source_and_target_takes_no_part(name, side):
    model = build(EncoderDecoder, small(name))
    source, tokens = random_tokens(19), random_tokens(17, 1)
    of_source, of_tokens = padding_of(side, 19), padding_of(side, 17)
    given = with_padding(source, of_source), with_padding(tokens, of_tokens)
    logits, real = model(*given, of_source, of_tokens), ~of_tokens[0]
    alone = model(source[:1, ~of_source[0]], tokens[:1, real])
    close(logits[:1, real], alone)
    close(logits[1:], model(source[1:], tokens[1:]))
    memory = model.encode(given[0], of_source)
    once, state = model.prefill(model.init_state(3), tokens[:, :9], memory, of_source)
    step, _ = model.step(state, tokens[:, 9], None, memory, of_source)
    expected = model(given[0], tokens[:, :10], of_source)
    close(torch.cat([once, step[:, None]], 1), expected)


@pytest.mark.parametrize("mask", [torch.zeros(3, 5), torch.zeros(3, 4, dtype=torch.bool)])
def test_a_mask_that_is_not_that_of_the_tokens_is_refused(mask):
    model = build(CausalTransformer, small())
    for call in (model, lambda *given: model.prefill(model.init_state(3), *given)):
        with pytest.raises(ValueError, match=r"use bool \(3, 5\), True where a token is padding"):
            call(random_tokens(5), mask)


@every_mechanism
def test_packed_sequences_give_the_logits_of_each_alone(name):
    model, tokens = build(CausalTransformer, small(name)), random_tokens(60, b=1)
    boundaries = [0, 1, 20, 20, 58, 60]
    logits = model(tokens, cu_seqlens=torch.tensor(boundaries, dtype=torch.int32))
    spans = [(a, b) for a, b in zip(boundaries, boundaries[1:], strict=False) if b > a]
    close(logits, torch.cat([model(tokens[:, a:b]) for a, b in spans], 1))


def test_packed_sequences_may_be_longer_together_than_the_model_is():
    model, tokens = build(CausalTransformer, small()), random_tokens(2 * MAX_LEN, b=1)
    assert model(tokens, cu_seqlens=torch.tensor([0, MAX_LEN, 2 * MAX_LEN])).shape[1] == 2 * MAX_LEN
    with pytest.raises(ValueError, match="build it for a longer sequence"):
        model(tokens, cu_seqlens=torch.tensor([0, MAX_LEN + 1, 2 * MAX_LEN]))
    with pytest.raises(ValueError, match="packed sequences have no padding"):
        mask = torch.zeros_like(tokens, dtype=torch.bool)
        model(tokens, mask, cu_seqlens=torch.tensor([0, 2 * MAX_LEN]))


# States


@every_mechanism
@pytest.mark.parametrize("first", [0, 1, 40])
def test_a_prompt_at_once_leaves_the_state_of_its_steps(name, first):
    model, tokens = build(CausalTransformer, small(name)), random_tokens(44)
    expected = model(tokens)
    logits, state = model.prefill(model.init_state(3), tokens[:, :first])
    close(logits, expected[:, :first])
    rest, _ = model.prefill(state, tokens[:, first:])
    close(rest, expected[:, first:])
    steps = []
    for token in tokens[:, first:].unbind(1):
        step, state = model.step(state, token)
        steps.append(step)
    close(torch.stack(steps, 1), expected[:, first:])
    close(gradient(torch.stack(steps, 1), model), gradient(expected[:, first:], model))
    close(gradient(rest, model), gradient(expected[:, first:], model))


@every_mechanism
@torch.no_grad()
def test_two_continuations_of_one_state_are_each_right(name):
    model, prompt = build(CausalTransformer, small(name)), random_tokens(6)
    _, state = model.prefill(model.init_state(3, max_len=20), prompt)
    branches = {seed: (random_tokens(5, seed), state, []) for seed in (1, 2)}
    for i in range(5):
        for seed, (tokens, mine, found) in branches.items():
            logits, mine = model.step(mine, tokens[:, i])
            branches[seed] = (tokens, mine, [*found, logits])
    for tokens, _, found in branches.values():
        close(torch.stack(found, 1), model(torch.cat([prompt, tokens], 1))[:, 6:])


# Grouped heads


@pytest.mark.parametrize("n_kv_heads", [1, 2])
@every_mechanism
def test_a_model_with_fewer_heads_of_keys_is_one_whose_keys_are_repeated(name, n_kv_heads):
    config = small(name, n_heads=4, d_model=32)
    grouped = build(CausalTransformer, replace(config, n_kv_heads=n_kv_heads))
    whole, tokens = build(CausalTransformer, config), random_tokens(40)
    weights, times = grouped.state_dict(), 4 // n_kv_heads
    for key, x in weights.items():
        if "to_qkv" in key:
            q, kv = x[:32], x[32:].unflatten(0, (2, n_kv_heads, 8))
            weights[key] = torch.cat([q, kv.repeat_interleave(times, dim=1).flatten(0, 2)])
        if "beta" in key:
            weights[key] = x.repeat_interleave(times, dim=0)
    whole.load_state_dict(weights)
    expected = whole(tokens)
    close(grouped(tokens), expected)
    close(grouped.prefill(grouped.init_state(3), tokens)[0], expected)
    if name == "lsh":  # a query is its own key
        return
    states = (model.prefill(model.init_state(3), tokens)[1] for model in (grouped, whole))
    few, many = (
        sum(x.numel() for x in state.blocks[0] if isinstance(x, torch.Tensor)) for state in states
    )
    assert few * times == many


# Configs


def test_dropout_at_the_embedding_is_that_of_the_blocks_unless_it_is_given():
    def dropped(config):
        embedding, tokens = build(CausalTransformer, config).embedding, random_tokens(50)
        return not torch.equal(embedding(tokens), embedding.train()(tokens))

    assert dropped(small(dropout=0.5))
    assert not dropped(small(dropout=0.5, embedding_dropout=0.0))


# What torch does with a model


@every_mechanism
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_model_from_the_meta_device_is_the_model(name, dtype):
    config, tokens = small(name), random_tokens(20)
    model = build(CausalTransformer, config).to(dtype)
    with torch.device("meta"):
        emptied, assigned = (build(CausalTransformer, config).to(dtype) for _ in range(2))
    emptied.to_empty(device="cpu").load_state_dict(model.state_dict())
    assigned.load_state_dict(model.state_dict(), assign=True)
    expected = model(tokens)
    assert torch.equal(emptied(tokens), expected)
    assert torch.equal(assigned(tokens), expected)
    again = deepcopy(model).to("meta").to_empty(device="cpu")
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(tokens), expected)


@pytest.mark.parametrize("name", ["performer", "lsh"])
def test_what_is_drawn_at_the_start_is_drawn_on_leaving_the_meta_device(name):
    with torch.device("meta"):
        model = CausalTransformer(small(name), vocab_size=VOCAB, max_len=MAX_LEN)
    drawn = dict(CausalTransformer(small(name), vocab_size=VOCAB, max_len=MAX_LEN).named_buffers())
    for key, x in model.to_empty(device="cpu").named_buffers():
        assert torch.equal(x, drawn[key])


@every_mechanism
def test_a_model_can_be_copied_and_kept_whole(name):
    model, tokens = build(CausalTransformer, small(name)), random_tokens(20)
    model(tokens)
    set_dropout_generator(model, torch.Generator().manual_seed(0))
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    expected = model(tokens)
    for other in (
        deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(file, weights_only=False),
    ):
        assert torch.equal(other(tokens), expected)


@pytest.mark.slow
@every_mechanism
def test_a_model_is_exported_and_compiled_whole(name):
    model, tokens = build(CausalTransformer, small(name)).float(), random_tokens(20)
    expected = model(tokens)
    torch._dynamo.reset()
    exported = torch.export.export(model, (tokens,)).module()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    for found in (exported(tokens), compiled(tokens)):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@every_mechanism
def test_a_model_has_second_derivatives(name):
    """Along a direction, by the first derivatives at two places."""
    fused = {"kernel": "textbook"} if name == "softmax" else {}  # torch's has none
    config = small(name, n_layers=1, **fused)
    model, tokens = build(CausalTransformer, config), random_tokens(35)
    parameters = [p for p in model.parameters() if p.dim() > 1]
    generator = torch.Generator().manual_seed(1)
    direction = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]

    def first():
        loss = model(tokens).square().mean()
        return torch.autograd.grad(loss, parameters, create_graph=True)

    along = sum((g * d).sum() for g, d in zip(first(), direction, strict=True))
    found = torch.cat([x.flatten() for x in torch.autograd.grad(along, parameters)])
    ends, h = [], 1e-6
    for sign in (1, -1):
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p.add_(d, alpha=sign * h)
        ends.append(torch.cat([g.detach().flatten() for g in first()]))
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p.sub_(d, alpha=sign * h)
    expected = (ends[0] - ends[1]) / (2 * h)
    assert (found - expected).norm() < 1e-4 * expected.norm()


@every_mechanism
def test_checkpointed_blocks_have_the_same_gradients(name):
    model, tokens = build(CausalTransformer, small(name)), random_tokens(35)
    expected = gradient(model(tokens), model)
    x = model.embedding(tokens)
    for block in model.blocks:
        x = checkpoint(block, x, use_reentrant=False)
    assert torch.equal(gradient(model.head(model.norm(x)), model), expected)


def test_checkpointed_dropout_is_drawn_again_or_refused():
    model, tokens = build(CausalTransformer, small(dropout=0.5)).train(), random_tokens(35)

    def found(run):
        torch.manual_seed(0)
        x = model.embedding(tokens)
        return gradient(run(model.blocks[0], x), model.blocks[0])

    def checkpointed(block, x):
        return checkpoint(block, x, use_reentrant=False)

    assert torch.equal(found(checkpointed), found(lambda block, x: block(x)))
    set_dropout_generator(model, torch.Generator())
    with pytest.raises(RuntimeError, match=r"use set_dropout_generator\(model, None\)"):
        found(checkpointed)


def test_of_no_tokens_come_no_logits():
    model, translator = (build(cls, small()) for cls in (CausalTransformer, EncoderDecoder))
    for b, n in ((0, 5), (3, 0)):
        tokens = random_tokens(n, b=b)
        mask = torch.zeros_like(tokens, dtype=torch.bool)
        assert model(tokens).shape == model(tokens, mask).shape == (b, n, VOCAB)
        assert model.prefill(model.init_state(b), tokens)[0].shape == (b, n, VOCAB)
        assert translator(tokens, tokens, mask, mask).shape == (b, n, VOCAB)
