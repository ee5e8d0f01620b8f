"""A decoder gives a token at a time what the model gives for the whole sequence."""

from dataclasses import replace
from itertools import islice

import pytest
import torch

from replib.attention import ATTENTION
from replib.attention.softmax import FIRST_CACHE_LEN
from replib.decoder import MAX_BATCH, MAX_POSITIONS, Decoder
from replib.decoder_layers import PACKED_FROM
from replib.generation import generate, most_likely, padded, stream, translate_greedily
from replib.models import CausalTransformer, EncoderDecoder, TransformerConfig

VOCAB, MAX_LEN, N = 7, 80, 70  # N is beyond a cache's first capacity
TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-5}
AMPLIFIED = {"dpfp": 20}  # where a query has few features in common with the keys, den is near 0

RECURRENT = [name for name, cls in ATTENTION.items() if cls.recurrent]
CONFIGS = [
    TransformerConfig(
        attention=name,
        norm=norm,
        positions=positions,
        n_layers=2,
        n_heads=2,
        d_model=16,
        d_feedforward=32,
        dropout=0.3,
    )
    for name in RECURRENT
    for norm, positions in (("post", "concatenated"), ("pre", "added"))
]
SOFTMAX, LINEAR = (next(c for c in CONFIGS if c.attention == a) for a in ("softmax", "linear"))

every_config = pytest.mark.parametrize("config", CONFIGS, ids=str)
every_dtype = pytest.mark.parametrize(
    "dtype", [torch.float64, pytest.param(torch.float32, marks=pytest.mark.slow)], ids=str
)


def build(cls, config, dtype=torch.float64, max_len=MAX_LEN):
    torch.manual_seed(0)
    return cls(config, vocab_size=VOCAB, max_len=max_len).to(dtype).eval()


def random_tokens(n, seed=0, b=3):
    return torch.randint(0, VOCAB, (b, n), generator=torch.Generator().manual_seed(seed))


def logits_of(decoder, tokens):
    return torch.stack([decoder.step(token) for token in tokens.unbind(1)], dim=1)


def close(actual, expected, dtype=torch.float64, attention=None):
    tolerance = TOLERANCE[dtype] * AMPLIFIED.get(attention, 1)
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@every_config
@every_dtype
@pytest.mark.parametrize("batch_size", [1, PACKED_FROM + 1])
@pytest.mark.parametrize("max_len", [None, pytest.param(N, marks=pytest.mark.slow)])
def test_a_decoder_gives_the_parallel_logits(config, dtype, batch_size, max_len):
    model, tokens = build(CausalTransformer, config, dtype), random_tokens(N, b=batch_size)
    with torch.no_grad():
        expected = model(tokens)
    decoder = Decoder(model, batch_size, max_len=max_len)
    close(logits_of(decoder, tokens), expected, dtype, config.attention)


@every_config
@every_dtype
@pytest.mark.parametrize("batch_size", [1, PACKED_FROM + 1])
def test_a_decoder_with_a_memory_gives_the_parallel_logits(config, dtype, batch_size):
    model = build(EncoderDecoder, config, dtype)
    source, tokens = random_tokens(9, b=batch_size), random_tokens(N, 1, b=batch_size)
    with torch.no_grad():
        expected, memory = model(source, tokens), model.encode(source)
    decoder = Decoder(model, batch_size, memory=memory)
    close(logits_of(decoder, tokens), expected, dtype, config.attention)


@every_config
@every_dtype
def test_a_decoder_gives_what_the_steps_of_the_model_give(config, dtype):
    model, tokens = build(CausalTransformer, config, dtype), random_tokens(N)
    states, steps = model.init_state(len(tokens)), []
    with torch.no_grad():
        for position, token in enumerate(tokens.unbind(1)):
            logits, states = model.step(states, token, position)
            steps.append(logits)
    found, expected = logits_of(Decoder(model, len(tokens)), tokens), torch.stack(steps, dim=1)
    close(found, expected, dtype, config.attention)


@every_config
@torch.inference_mode()
def test_the_form_for_a_cuda_graph_gives_the_parallel_logits_in_place(config):
    model, tokens = build(CausalTransformer, config), random_tokens(N)
    decoder = Decoder(model, len(tokens), max_len=N, graph=False)
    decoder._start_in_fixed_shapes()
    memory = [x.data_ptr() for state in decoder.states for x in state]
    steps = []
    for i, token in enumerate(tokens.unbind(1)):
        decoder._token.copy_(token)
        decoder._position.fill_(i)
        decoder._advance_in_fixed_shapes()
        steps.append(decoder._logits.clone())
    close(torch.stack(steps, dim=1), model(tokens))
    assert [x.data_ptr() for state in decoder.states for x in state] == memory


class Replayed:
    """What a CUDA graph does, without one."""

    def __init__(self, decoder):
        self.replay = torch.inference_mode()(decoder._advance_in_fixed_shapes)


@every_config
def test_a_graph_goes_on_from_a_prompt_with_padding_and_is_forked(config, monkeypatch):
    def record(decoder, like=None):
        decoder._start_in_fixed_shapes(like)
        decoder._graph = Replayed(decoder)

    monkeypatch.setattr(Decoder, "_record", torch.inference_mode()(record))
    model, (tokens, mask) = build(CausalTransformer, config), padded(prompts(9, 4))
    more = random_tokens(5, b=2)
    decoder = Decoder(model, 2, max_len=20)
    decoder._record()
    for _ in range(2):
        decoder.prefill(tokens, mask)
        memory = [x.data_ptr() for state in decoder.states for x in state if x.numel()]
        found, other = logits_of(decoder, more), decoder.fork(torch.tensor([1]))
        assert [x.data_ptr() for state in decoder.states for x in state if x.numel()] == memory
        last = random_tokens(1, seed=1, b=1)
        for row in range(2):
            whole = torch.cat([tokens[row, ~mask[row]], more[row], last[0]])[None]
            with torch.no_grad():
                expected = model(whole)[0]
            close(found[row], expected[-6:-1])
        close(other.step(last[:, 0])[0], expected[-1])
        decoder.jump(0)  # and afresh


def test_without_a_graph_a_decoder_says_so_and_starts_afresh(monkeypatch):
    def fail(decoder):
        decoder._start_in_fixed_shapes()
        decoder._advance_in_fixed_shapes()
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(Decoder, "_record", fail)
    model, tokens = build(CausalTransformer, SOFTMAX), random_tokens(N)
    decoder = Decoder(model, len(tokens), max_len=N)
    slower = "without a CUDA graph, slower: operation not permitted"
    with torch.inference_mode(), pytest.warns(UserWarning, match=slower):
        decoder._try_to_record()
    with torch.no_grad():
        close(logits_of(decoder, tokens), model(tokens))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@every_config
def test_a_cuda_graph_gives_the_parallel_logits(config):
    model, tokens = build(CausalTransformer, config).cuda(), random_tokens(N).cuda()
    decoder = Decoder(model, len(tokens), max_len=N)
    assert decoder._graph is not None
    with torch.no_grad():
        close(logits_of(decoder, tokens), model(tokens))


@every_config
@pytest.mark.parametrize("batch_size", [1, 3, PACKED_FROM + 1])
@pytest.mark.parametrize("max_len", [None, N])
def test_a_prompt_at_once_is_its_tokens_one_after_the_other(config, batch_size, max_len):
    model, tokens = build(CausalTransformer, config), random_tokens(N, b=batch_size)
    model.train()  # dropout takes no part
    decoder = Decoder(model, batch_size, max_len=max_len)
    found = [decoder.prefill(tokens[:, :33]), decoder.prefill(tokens[:, 33:40])]
    assert decoder.position == 40
    found += decoder.step(tokens[:, 40]), decoder.prefill(tokens[:, 41:])
    with torch.no_grad():
        expected = model.eval()(tokens)
    close(torch.stack(found), expected[:, [32, 39, 40, N - 1]].transpose(0, 1))


def test_a_long_prompt_is_taken_in_parts(monkeypatch):
    model, tokens = build(CausalTransformer, SOFTMAX), random_tokens(N)
    mask = torch.zeros_like(tokens, dtype=torch.bool)
    mask[0, :20], mask[1, 30:] = True, True
    expected = Decoder(model, 3).prefill(tokens), Decoder(model, 3).prefill(tokens, mask)
    monkeypatch.setattr("replib.decoder.PREFILL_LEN", 7)
    close(Decoder(model, 3).prefill(tokens), expected[0])
    close(Decoder(model, 3).prefill(tokens, mask), expected[1])


def prompts(*lengths):
    return [random_tokens(n, seed=n, b=1)[0] for n in lengths]


@every_config
@pytest.mark.parametrize("side", ["left", "right"])
def test_prompts_of_several_lengths_are_continued_as_each_alone(config, side):
    model, given = build(CausalTransformer, config), prompts(5, 40, 1)
    tokens, mask = padded(given)
    if side == "right":
        tokens, mask = (
            torch.stack([r.roll(-int(m.sum())) for r, m in zip(x, mask, strict=True)])
            for x in (tokens, mask)
        )
    alone = torch.cat([generate(model, x[None], 8) for x in given])
    assert torch.equal(generate(model, tokens, 8, mask), alone)
    decoder = Decoder(model, 3)  # and after them more prompts of several lengths
    decoder.prefill(tokens, mask)
    more = prompts(3, 7, 2)
    logits = decoder.prefill(*padded(more))
    for row, (x, y) in enumerate(zip(given, more, strict=True)):
        with torch.no_grad():
            close(logits[row], model(torch.cat([x, y])[None])[0, -1])


@every_config
def test_sources_of_several_lengths_are_translated_as_each_alone(config):
    model, given = build(EncoderDecoder, config), prompts(5, 13, 1)
    source, mask = padded(given)
    alone = [translate_greedily(model, x[None], 1, end=VOCAB, max_len=6) for x in given]
    found = translate_greedily(model, source, 1, VOCAB, 6, source_padding_mask=mask)
    assert torch.equal(found, torch.cat(alone))


@every_config
@pytest.mark.parametrize("cls", [CausalTransformer, EncoderDecoder])
def test_forks_go_on_from_a_common_prompt_each_by_itself(config, cls):
    model, (tokens, mask) = build(cls, config), padded(prompts(9, 4))
    encoded = {}
    if cls is EncoderDecoder:
        source, of_source = padded(prompts(6, 11))
        with torch.no_grad():
            encoded["memory"] = model.encode(source, of_source)
        encoded["source_padding_mask"] = of_source
    rows = torch.tensor([1, 1, 0, 1, 0])
    more = random_tokens(4, b=len(rows))

    def alone(row, after):
        whole = torch.cat([tokens[row, ~mask[row]], after])[None]
        given = (source[row : row + 1, ~of_source[row]], whole) if encoded else (whole,)
        with torch.no_grad():
            return model(*given)[0, -len(after) :]

    decoder = Decoder(model, 2, **encoded)
    decoder.prefill(tokens, mask)
    forked, whole = decoder.fork(rows), decoder.fork()
    found = logits_of(forked, more)
    for i, row in enumerate(rows):
        close(found[i], alone(row, more[i]))
    for other in (whole, decoder):  # neither has moved meanwhile
        found = logits_of(other, more[:2])
        for row in range(2):
            close(found[row], alone(row, more[row]))


@every_config
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_decoder_under_autocast_keeps_the_dtype_of_its_weights(config, dtype):
    model, tokens = build(CausalTransformer, config, torch.float32), random_tokens(20)
    with torch.no_grad():
        expected = model(tokens)
    with torch.autocast("cpu", dtype=dtype):
        decoder = Decoder(model, 3)
        first = decoder.prefill(tokens[:, :9])
        found = torch.cat([first[:, None], logits_of(decoder.fork(), tokens[:, 9:])], 1)
    close(found, expected[:, 8:], torch.float32, config.attention)


@pytest.mark.parametrize("batch_size", [1, PACKED_FROM + 1])
@pytest.mark.parametrize("name", RECURRENT)
def test_a_decoder_with_fewer_heads_of_keys_gives_the_parallel_logits(name, batch_size):
    config = replace(LINEAR, attention=name, n_heads=4, n_kv_heads=2, d_model=32)
    model, tokens = build(CausalTransformer, config), random_tokens(N, b=batch_size)
    with torch.no_grad():
        expected = model(tokens)
    decoder = Decoder(model, batch_size)
    close(decoder.prefill(tokens[:, :30]), expected[:, 29])
    close(logits_of(decoder, tokens[:, 30:]), expected[:, 30:])
    translator, source = build(EncoderDecoder, config), random_tokens(9, 1, b=batch_size)
    with torch.no_grad():
        expected, memory = translator(source, tokens), translator.encode(source)
    close(logits_of(Decoder(translator, batch_size, memory=memory), tokens), expected)


@pytest.mark.parametrize(
    "tokens, mask, message",
    [
        (random_tokens(4, b=2), None, r"use \(3, N\)"),
        (random_tokens(0), None, "at least one token"),
        (random_tokens(4), torch.zeros(3, 3, dtype=torch.bool), r"use bool \(3, 4\)"),
        (
            random_tokens(2),
            torch.tensor([[False] * 2, [True] * 2, [False] * 2]),
            "a prompt is empty",
        ),
        (random_tokens(9), None, "use a larger max_len"),
    ],
)
def test_prompts_that_a_decoder_cannot_take_are_refused(tokens, mask, message):
    with pytest.raises(ValueError, match=message):
        Decoder(build(CausalTransformer, LINEAR), 3, max_len=8).prefill(tokens, mask)


def test_a_cache_grows_by_doubling_or_is_allocated_once():
    model, tokens = build(CausalTransformer, SOFTMAX), random_tokens(2 * FIRST_CACHE_LEN + 1)
    growing, fixed = Decoder(model, 3), Decoder(model, 3, max_len=tokens.shape[1])
    capacities, memory = set(), set()
    for token in tokens.unbind(1):
        growing.step(token), fixed.step(token)
        capacities.add(growing.states[0].keys.shape[2])
        memory.add(fixed.states[0].keys.data_ptr())
    assert capacities == {FIRST_CACHE_LEN, 2 * FIRST_CACHE_LEN, 4 * FIRST_CACHE_LEN}
    assert len(memory) == 1
    assert fixed.states[0].keys.shape[2] == fixed.states[0].length == tokens.shape[1]


def test_the_state_of_linear_attention_stays_where_it_is_and_as_large():
    decoder = Decoder(build(CausalTransformer, LINEAR), 3)
    before = [(x.data_ptr(), x.shape) for state in decoder.states for x in state]
    logits_of(decoder, random_tokens(N))
    assert [(x.data_ptr(), x.shape) for state in decoder.states for x in state] == before


@every_config
def test_decoding_goes_on_beyond_the_positions_of_the_model(config):
    """A model of the same weights that was built for more positions says what must come."""
    long, tokens = build(CausalTransformer, config, max_len=N), random_tokens(N)
    short = build(CausalTransformer, config, max_len=11)
    short.load_state_dict(long.state_dict())
    with torch.no_grad():
        close(logits_of(Decoder(short, len(tokens)), tokens), long(tokens))


@every_config
def test_the_embedding_of_one_position_is_that_of_the_sequence(config):
    embedding, tokens = build(CausalTransformer, config).embedding, random_tokens(MAX_LEN)
    whole = embedding(tokens)
    for n in (0, 1, MAX_LEN - 1):
        for position in (n, torch.tensor(n)):
            assert torch.equal(embedding.step(tokens[:, n], position), whole[:, n])


def test_dropout_takes_no_part_and_the_model_stays_in_its_mode():
    model, prompt = build(CausalTransformer, LINEAR), random_tokens(11)
    expected = generate(model, prompt, 6)
    model.train()
    assert torch.equal(generate(model, prompt, 6), expected)
    assert model.training
    translator = build(EncoderDecoder, LINEAR)
    expected = translate_greedily(translator, prompt, 1, end=VOCAB, max_len=6)
    translator.train()
    assert torch.equal(translate_greedily(translator, prompt, 1, end=VOCAB, max_len=6), expected)
    assert translator.training


@every_dtype
@pytest.mark.parametrize("batch_size", [1, 3, PACKED_FROM + 1])
def test_a_decoder_follows_its_model_as_it_learns(dtype, batch_size):
    model, tokens = build(CausalTransformer, LINEAR, dtype), random_tokens(5, b=batch_size)
    decoder = Decoder(model, batch_size)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, dtype=parameter.dtype))
        close(logits_of(decoder, tokens), model(tokens), dtype)


@pytest.mark.parametrize("batch_size", [1, PACKED_FROM + 1])
def test_products_are_the_same_where_torch_packs_no_weights(monkeypatch, batch_size):
    model = build(CausalTransformer, LINEAR, torch.float32)
    tokens = random_tokens(5, b=batch_size)
    expected = logits_of(Decoder(model, batch_size), tokens)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    close(logits_of(Decoder(model, batch_size), tokens), expected, torch.float32)


def test_bfloat16_weights_keep_a_float32_state():
    model, tokens = build(CausalTransformer, LINEAR, torch.bfloat16), random_tokens(N)
    decoder = Decoder(model, len(tokens))
    logits = logits_of(decoder, tokens)
    assert logits.dtype == torch.bfloat16
    assert {x.dtype for state in decoder.states for x in state} == {torch.float32}
    with torch.no_grad():
        expected = model.float()(tokens)
    assert (logits - expected).norm() < 0.05 * expected.norm()


def test_logits_are_not_overwritten_by_the_next_step():
    decoder, tokens = Decoder(build(CausalTransformer, LINEAR), 3), random_tokens(2)
    first = decoder.step(tokens[:, 0])
    before = first.clone()
    decoder.step(tokens[:, 1])
    assert torch.equal(first, before)


def test_a_stream_feeds_back_what_was_chosen():
    model, prompt = build(CausalTransformer, LINEAR), random_tokens(4)

    def second(logits):
        return logits.topk(2).indices[:, 1]

    produced = torch.stack(list(islice(stream(Decoder(model, 3), prompt, second), 6)), dim=1)
    whole = torch.cat([prompt, produced], dim=1)
    assert torch.equal(second(model(whole)[:, 3:-1].flatten(0, 1)), produced.flatten())


def test_a_stream_takes_no_step_that_nobody_asked_for():
    decoder = Decoder(build(CausalTransformer, LINEAR), 3, max_len=6)
    assert len(list(islice(stream(decoder, random_tokens(4)), 3))) == 3
    assert decoder.position == 6


def test_nothing_is_a_continuation_of_no_length():
    assert generate(build(CausalTransformer, LINEAR), random_tokens(4), 0).shape == (3, 0)


def test_the_most_likely_token_has_the_largest_logit():
    assert most_likely(torch.tensor([[0.0, 3.0, 1.0], [5.0, -1.0, 2.0]])).tolist() == [1, 0]


@pytest.mark.parametrize(
    "config, sizes, message",
    [
        (LINEAR, {"batch_size": 0}, f"batch_size 0: use 1 to {MAX_BATCH}"),
        (LINEAR, {"batch_size": 10**9}, "batch_size 1000000000: use 1 to"),
        (SOFTMAX, {"max_len": 0}, f"max_len 0: use 1 to {MAX_POSITIONS}"),
        (SOFTMAX, {"max_len": 10**12}, "max_len 1000000000000: use 1 to"),
        (
            SOFTMAX,
            {"batch_size": MAX_BATCH, "max_len": MAX_POSITIONS},
            "GB are free: lower batch_size or max_len",
        ),
        (LINEAR, {"memory": torch.zeros(3, 4, 16)}, "and no other model, needs the memory"),
    ],
)
def test_impossible_sizes_are_refused_with_the_remedy(config, sizes, message):
    with pytest.raises(ValueError, match=message):
        Decoder(build(CausalTransformer, config), **{"batch_size": 3} | sizes)


def test_a_decoder_without_its_memory_is_refused():
    with pytest.raises(ValueError, match="needs the memory"):
        Decoder(build(EncoderDecoder, LINEAR), 3)


@pytest.mark.parametrize("shape", [(1,), (4,), (3, 1), ()])
def test_tokens_of_another_batch_are_refused(shape):
    decoder = Decoder(build(CausalTransformer, LINEAR), 3)
    with pytest.raises(ValueError, match=r"use \(3,\)"):
        decoder.step(torch.zeros(shape, dtype=torch.int64))


@every_config
def test_a_step_beyond_the_last_position_is_refused(config):
    decoder, tokens = Decoder(build(CausalTransformer, config), 3, max_len=4), random_tokens(5)
    logits_of(decoder, tokens[:, :4])
    with pytest.raises(ValueError, match="all 4 positions are taken: use a larger max_len"):
        decoder.step(tokens[:, 4])


def test_a_full_cache_keeps_what_it_holds_when_it_grows():
    attention = ATTENTION["softmax"]()
    q, k, v = torch.randn(3, 2, 3, 5, 4, dtype=torch.float64).unbind(0)
    state = attention.init_state(2, 3, 4, max_len=4, dtype=torch.float64)
    _, state = attention.prefill(state, *(x[:, :, :4] for x in (q, k, v)))
    y, state = attention.step_(state, q[:, :, 4], k[:, :, 4], v[:, :, 4])
    assert state.keys.shape[2] == 8
    close(y, attention(q, k, v)[:, :, 4])
