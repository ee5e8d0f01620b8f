"""Linformer attention against softmax attention, its equation in numpy, and probes of what it sees.

B batch, H heads of queries, G of keys and values, N sequence length, K slots.
"""

import math

import numpy as np
import pytest
import torch

from replib.attention import ATTENTION, linformer_attention, softmax_attention
from replib.attention.linformer import SHARING, LinformerAttention, _project
from replib.models import CausalTransformer, EncoderDecoder, TransformerConfig

B, H, D, M, N, K, LONGEST = 2, 3, 8, 5, 13, 4, 20
Options = LinformerAttention.Options
every_sharing = pytest.mark.parametrize("sharing", SHARING)


def drawn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


def qkv_of(n=N, heads=H):
    return drawn(B, H, n + 2, D), drawn(B, heads, n, D, seed=1), drawn(B, heads, n, M, seed=2)


def build(sharing="headwise", **options):
    options = Options(**{"k": K, "sharing": sharing} | options)
    torch.manual_seed(0)
    return LinformerAttention(n_heads=H, max_len=LONGEST, options=options).double()


def equation_7(q, k, v, e, f):
    """Of one head, (N', D), (N, D), (N, M), (K, N), (K, N) -> (N', M), in numpy."""
    scores = np.exp(q @ (e @ k).T / math.sqrt(q.shape[-1]))
    return scores / scores.sum(-1, keepdims=True) @ (f @ v)


@pytest.mark.parametrize("implementation", ["fused", "textbook"])
def test_with_identities_and_a_slot_a_position_it_is_softmax_attention(implementation):
    qkv, identity = qkv_of(), torch.eye(N, dtype=torch.float64)
    y = linformer_attention(*qkv, identity, identity)
    expected = softmax_attention(*qkv, causal=False, implementation=implementation)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    dy = drawn(*y.shape, seed=3).detach()
    for found, right in zip(*(torch.autograd.grad(x, qkv, dy) for x in (y, expected)), strict=True):
        torch.testing.assert_close(found, right, rtol=1e-10, atol=1e-12)


@every_sharing
@pytest.mark.parametrize("n", [1, N, LONGEST])
def test_it_is_equation_7_of_the_first_columns(sharing, n):
    attention, (q, k, v) = build(sharing), qkv_of(n)
    e, f = (x.detach().expand(H, K, LONGEST)[..., :n].numpy() for x in attention.matrices)
    y = attention(q, k, v, causal=False)
    q, k, v = (x.detach().numpy() for x in (q, k, v))
    for b, h in np.ndindex(B, H):
        expected = equation_7(q[b, h], k[b, h], v[b, h], e[h], f[h])
        np.testing.assert_allclose(y[b, h].detach(), expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("of_heads", [True, False])
@pytest.mark.parametrize("split", [True, False])
def test_gradients_are_those_of_finite_differences(of_heads, split):
    """Also of keys that are split from a projection, which are multiplied side by side, and the
    second ones of what is not torch's own."""
    n, d, k_slots = 3, 2, 2
    shape = (1, n, 2, d) if split else (1, 2, n, d)
    q = drawn(1, 2, n + 1, d)
    k, v = (drawn(*shape, seed=seed) for seed in (1, 2))
    shape = (2, k_slots, n + 1) if of_heads else (k_slots, n + 1)
    e, f = (drawn(*shape, seed=seed) for seed in (3, 4))

    def attend(q, k, v, e, f):
        k, v = (x.transpose(1, 2) if split else x for x in (k, v))
        return linformer_attention(q, k, v, e, f)

    assert torch.autograd.gradcheck(attend, (q, k, v, e, f))

    def project(e, k):
        return _project(e[..., :n], k.transpose(1, 2) if split else k)

    assert torch.autograd.gradgradcheck(project, (e, k))


def test_it_passes_transformations_of_functions():
    q, k, v = qkv_of()
    e, f = drawn(K, N, seed=4), drawn(K, N, seed=5)

    def loss(e):
        return linformer_attention(q, k, v, e, f).square().sum()

    expected = torch.autograd.grad(loss(e), e)[0]
    torch.testing.assert_close(torch.func.grad(loss)(e), expected)


# How many matrices there are


@pytest.mark.parametrize(
    "sharing, matrices",
    [("none", 2 * 12 * 2), ("headwise", 24), ("key-value", 12), ("layerwise", 1)],
)
def test_twelve_layers_have_the_matrices_of_their_sharing(sharing, matrices):
    sizes = {"n_layers": 6, "n_heads": 2, "d_model": 8, "d_feedforward": 8}
    how = {"attention": "linformer", "options": Options(k=K, sharing=sharing)}
    config = TransformerConfig(decoder_attention="softmax", **how, **sizes)
    without = TransformerConfig(attention="softmax", **sizes)

    def count(config):
        model = EncoderDecoder(config, vocab_size=5, max_len=LONGEST)
        return sum(x.numel() for x in model.parameters())

    # Six of the encoder and six to it; a matrix a head has two heads.
    assert count(config) - count(without) == matrices * K * LONGEST


def test_a_shared_matrix_stays_one_when_a_model_moves():
    options = Options(k=K, sharing="layerwise")
    config = TransformerConfig(
        attention="linformer", options=options, decoder_attention="softmax", n_layers=2
    )
    model = EncoderDecoder(config, vocab_size=5, max_len=LONGEST).double()
    layers = [block.self_attention.attention for block in model.encoder]
    layers += [block.cross_attention.attention for block in model.decoder]
    assert len({id(layer.e) for layer in layers}) == 1


def test_projections_that_are_not_learned_are_no_parameters_and_drawn_alike():
    one, other = build(learned=False), build(learned=False)
    assert not list(one.parameters()) and torch.equal(one.e, other.e)
    assert not torch.equal(one.e, one.f) and one.e.abs().max() > 0
    with torch.device("meta"):
        emptied = build(learned=False)
    torch.testing.assert_close(emptied.to_empty(device="cpu").double().e.float(), one.e.float())
    found = linformer_attention(*qkv_of(), *one.matrices)
    torch.testing.assert_close(one(*qkv_of(), causal=False), found)


def test_projections_begin_as_those_of_the_authors():
    attention = LinformerAttention(n_heads=1, max_len=2000, options=Options(k=500))
    e = attention.e.detach()
    bound = math.sqrt(1 / 2) * math.sqrt(6 / (2000 + 500))
    assert bound * 0.999 < e.abs().max() <= bound
    assert e.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.01)


# What it sees


def leak(attend, n=9):
    """Whether output i depends on value j, (N, N), by the derivative."""
    q, k, v = (drawn(1, 1, n, D, seed=s).detach() for s in range(3))
    jacobian = torch.autograd.functional.jacobian(lambda v: attend(q, k, v), v)
    return jacobian.abs().amax((0, 1, 3, 4, 5, 7)) > 1e-12


def test_a_causal_mask_over_slots_hides_no_position_where_one_over_positions_does():
    n = 9
    e, f = drawn(K, n, seed=4), drawn(K, n, seed=5)
    past = torch.ones(n, n, dtype=torch.bool).tril()
    assert torch.equal(leak(softmax_attention), past)
    seen = leak(lambda *qkv: linformer_attention(*qkv, e, f, mask_slots=True))
    assert torch.equal(seen & ~past, ~past)  # the leak is all of the future


def test_masked_slots_are_hidden():
    q, k, v = qkv_of()
    e, f = (drawn(K, N, seed=s).detach() for s in (4, 5))
    expected = linformer_attention(q, k, v, e, f, mask_slots=True)
    for i in range(K):
        y = linformer_attention(q, k, v, e[: i + 1], f[: i + 1])
        torch.testing.assert_close(expected[:, :, i], y[:, :, i])


def test_it_refuses_to_be_causal_and_says_why():
    q, k, v = qkv_of()
    with pytest.raises(ValueError, match="a sum over all positions.*use causal=False"):
        build()(k, k, v)
    with pytest.raises(ValueError, match="a sum over all positions"):
        linformer_attention(q, k, v, *build().matrices, causal=True)
    config = TransformerConfig(attention="linformer")
    with pytest.raises(ValueError, match="use another attention, such as 'softmax'"):
        CausalTransformer(config, vocab_size=5, max_len=8)
    with pytest.raises(ValueError, match="use another decoder_attention"):
        EncoderDecoder(config, vocab_size=5, max_len=8)


def padded_on(side):
    mask = torch.zeros(B, N, dtype=torch.bool)
    mask[0, {"right": slice(9, None), "left": slice(4), "both": [0, 1, 11, 12]}[side]] = True
    return mask


@every_sharing
@pytest.mark.parametrize("side", ["right", "left", "both"])
@pytest.mark.parametrize("held", [0.0, math.nan, 1e30])
def test_a_padded_row_is_the_row_alone_whatever_its_padding_holds(sharing, side, held):
    attention, (q, k, v), mask = build(sharing), qkv_of(), padded_on(side)
    hidden = mask[:, None, :, None]
    filled = [x.masked_fill(hidden, held) for x in (k, v)]
    y = attention(q, *filled, causal=False, key_padding_mask=mask)
    kept = ~mask[0]
    alone = attention(q[:1], k[:1, :, kept], v[:1, :, kept], causal=False)
    torch.testing.assert_close(y[:1], alone, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(y[1:], attention(q[1:], k[1:], v[1:], causal=False))
    assert torch.autograd.grad(y.sum(), k)[0].isfinite().all()


def test_without_the_mask_what_padding_holds_changes_the_others():
    attention, (q, k, v), mask = build(mask_padding=False), qkv_of(), padded_on("right")
    kept = ~mask[0]
    alone = attention(q[:1], k[:1, :, kept], v[:1, :, kept], causal=False)
    y = attention(q, k, v, causal=False, key_padding_mask=mask)
    assert (y[:1] - alone).abs().max() > 0.1
    zeros = [x.masked_fill(mask[:, None, :, None], 0) for x in (k, v)]
    torch.testing.assert_close(attention(q, *zeros, causal=False)[:1], alone)


@every_sharing
def test_heads_of_keys_may_be_shared_and_stay(sharing):
    """Also what a decoder reads of a source at every token."""
    options = Options(k=K, sharing=sharing)
    grouped = LinformerAttention(n_heads=1, max_len=LONGEST, options=options).double()
    q, k, v = qkv_of(heads=1)
    expected = grouped(q, k, v, causal=False)
    many = [
        x.detach().expand(H, *x.shape[-2:]) if sharing == "none" else x for x in grouped.matrices
    ]
    repeated = linformer_attention(q, *(x.expand(-1, H, -1, -1) for x in (k, v)), *many)
    torch.testing.assert_close(expected, repeated)
    read = grouped.over(k, v)
    steps = [read(q[:, :, i : i + 1]) for i in range(q.shape[2])]
    torch.testing.assert_close(torch.cat(steps, 2), expected)


@pytest.mark.parametrize("name", ATTENTION)
def test_what_stays_is_read_as_it_is_attended_over(name):
    attention = ATTENTION[name].for_model(n_heads=H, head_dim=D, max_len=LONGEST).double()
    q, k, v = qkv_of()
    mask = padded_on("right")
    expected = attention(q, k, v, causal=False, key_padding_mask=mask)
    torch.testing.assert_close(attention.over(k, v, key_padding_mask=mask)(q), expected)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"k": 0}, "k 0: use 1 to"),
        ({"sharing": "all"}, "use headwise, key-value, layerwise, none"),
    ],
)
def test_options_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Options(**changes)


def test_more_keys_than_columns_and_matrices_of_other_heads_are_refused():
    q, k, v = qkv_of(LONGEST + 1)
    with pytest.raises(ValueError, match="21 keys, and the projections are of 20 positions"):
        build()(q, k, v, causal=False)
    e = drawn(H + 1, K, LONGEST + 1)
    with pytest.raises(ValueError, match=r"or \(3, slots, length\)"):
        linformer_attention(q, k, v, e, e)


def test_memory_of_the_gradient_of_a_matrix_is_not_a_matrix_a_head():
    """Autograd's own bmm would hold B·H matrices (K, N)."""
    from replib.lab.memory_use import peak_memory_bytes

    b, h, n, d, k_slots = 2, 16, 1024, 8, 64
    e = torch.randn(k_slots, n, requires_grad=True)
    q, k, v = (torch.randn(b, h, n, d, requires_grad=True) for _ in range(3))

    def work():
        y = linformer_attention(q, k, v, e, e)
        torch.autograd.grad(y, (q, k, v, e), torch.ones_like(y))

    assert peak_memory_bytes(work) < b * h * k_slots * n * 4


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("cross", [None, "softmax"])
def test_an_encoder_decoder_gives_a_padded_row_what_it_gives_alone(side, cross):
    options = Options(k=3)
    config = TransformerConfig(
        attention="linformer",
        options=options,
        decoder_attention="softmax",
        cross_attention=cross,
        n_layers=2,
        n_heads=2,
        d_model=16,
        d_feedforward=32,
        dropout=0.0,
    )
    torch.manual_seed(0)
    model = EncoderDecoder(config, vocab_size=7, max_len=LONGEST).double().eval()
    source, tokens = (torch.randint(7, (3, n)) for n in (N, 5))
    mask = torch.zeros_like(source, dtype=torch.bool)
    mask[0, : 4 if side == "left" else None][-4:] = True
    real = ~mask[0]
    y = model(source, tokens, mask)
    torch.testing.assert_close(y[:1], model(source[:1, real], tokens[:1]))
    torch.testing.assert_close(y[1:], model(source[1:], tokens[1:]))
    later = tokens.clone()
    later[:, 3:] = (later[:, 3:] + 1) % 7
    torch.testing.assert_close(model(source, later, mask)[:, :3], y[:, :3])
    of_source = source.clone()
    of_source[:, -1 if side == "left" else 5] += 1
    of_source %= 7
    assert (model(of_source, tokens, mask) != y).any(-1).all()
