"""The recurrent forms of linear attention, relu, Performer and DPFP against their parallel form.

B batch, H heads of queries, G of keys, N sequence length, D query/key size, M value size.
"""

from copy import deepcopy

import pytest
import torch

from replib.attention import ATTENTION, linear_attention, softmax_attention
from replib.attention.performer import PerformerAttention

B, H, D, M = 2, 4, 8, 5
NAMES = ("linear", "relu", "performer", "dpfp")
EACH = pytest.mark.parametrize("name", NAMES)
SCALES = pytest.mark.parametrize("scale", [1.0, 8.0])  # of Performer's keys, long ones fade


def random_qkv(n, *, g=H, scale=1.0, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((H, n, D), (g, n, D), (g, n, M))
    q, k, v = (torch.randn(B, *s, generator=generator, dtype=torch.float64) for s in shapes)
    return [x.to(dtype) for x in (scale * q, scale * k, v)]


def build(name):
    return ATTENTION[name].for_model(n_heads=H, head_dim=D, max_len=99).double()


def start(attention, g=H, dtype=torch.float64):
    return attention.init_state(B, g, D, M, dtype=dtype)


def in_steps(step, state, q, k, v):
    reads = []
    for i in range(q.shape[2]):
        y, state = step(state, q[:, :, i], k[:, :, i], v[:, :, i])
        reads.append(y)
    return torch.stack(reads, 2), state


def gradients(y, inputs):
    return torch.autograd.grad(y.square().sum(), inputs)


def assert_same(found, expected):
    for a, e in zip(found, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-8, atol=1e-10)


@SCALES
@pytest.mark.parametrize("g", [H, 2, 1])
@EACH
def test_steps_and_prefill_give_outputs_gradients_and_states_of_each_other(name, g, scale):
    attention, inputs = build(name), [x.requires_grad_() for x in random_qkv(70, g=g, scale=scale)]
    y = attention(*inputs)
    expected = [y, *gradients(y, inputs)]
    steps, after_steps = in_steps(attention.step, start(attention, g), *inputs)
    assert_same([steps, *gradients(steps, inputs)], expected)
    state, parts = start(attention, g), []
    for first, last in ((0, 13), (13, 13), (13, 70)):
        y, state = attention.prefill(state, *(x[:, :, first:last] for x in inputs))
        parts.append(y)
    prefilled = torch.cat(parts, 2)
    assert_same(state, after_steps)
    assert_same([prefilled, *gradients(prefilled, inputs)], expected)
    in_place, state = in_steps(attention.step_, start(attention, g), *inputs)
    assert_same([in_place, *state], [steps.detach(), *after_steps])


@EACH
def test_a_state_is_a_value_and_step__alone_uses_its_memory(name):
    attention, (q, k, v) = build(name), random_qkv(5)
    _, state = attention.prefill(start(attention), q, k, v)
    kept = deepcopy(state)
    for n in (0, 1, 5):
        attention.prefill(state, *(x[:, :, :n] for x in (q, k, v)))
        _, after = attention.prefill(state, *(x[:, :, :0] for x in (q, k, v)))
        attention.step_(after, q[:, :, 0], k[:, :, 0], v[:, :, 0])
    _, after = attention.step(state, q[:, :, 0], k[:, :, 0], v[:, :, 0])
    assert all(map(torch.equal, state, kept))
    _, same = attention.step_(state, q[:, :, 0], k[:, :, 0], v[:, :, 0])
    assert same.s.data_ptr() == state.s.data_ptr()
    assert_same(same, after)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@EACH
def test_steps_and_prefill_keep_float32_under_autocast(name, dtype):
    attention, inputs = build(name).float(), random_qkv(30, dtype=torch.float32)
    state = start(attention, dtype=torch.float32)
    expected = attention(*inputs)
    with torch.no_grad(), torch.autocast("cpu", dtype=dtype):
        found = [
            in_steps(attention.step, state, *inputs)[0],
            attention.prefill(state, *inputs)[0],
            in_steps(attention.step_, state, *inputs)[0],
            attention(*inputs),
        ]
    for y in found:
        assert y.dtype == torch.float32
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 1e30])
@pytest.mark.parametrize("how", ["causal", "not causal", "prefill"])
@EACH
def test_padding_reaches_nothing_whatever_it_holds(name, how, bad):
    """Padding on the left of one sample and on the right of the other."""
    attention, inputs, n = build(name), random_qkv(40, g=2), 40
    padding = torch.zeros(B, n, dtype=torch.bool)
    padding[0, :7], padding[1, 30:] = True, True

    def run(inputs):
        inputs = [x.clone().requires_grad_() for x in inputs]
        if how == "prefill":
            y, state = attention.prefill(start(attention, 2), *inputs, key_padding_mask=padding)
        else:
            y = attention(*inputs, causal=how == "causal", key_padding_mask=padding)
            state = ()
        y = y.transpose(1, 2)[~padding]
        return [y, *state, *gradients(y, inputs)]

    spoiled = [x.clone() for x in inputs]
    for x in spoiled[how == "not causal" :]:
        x.transpose(1, 2)[padding] = bad
    found, expected = run(spoiled), run(inputs)
    assert_same(found, expected)
    alone = attention(*(x[:1, :, 7:] for x in inputs), causal=how != "not causal")
    if how != "not causal":
        torch.testing.assert_close(found[0][: n - 7], alone[0].transpose(0, 1))


@EACH
def test_fewer_heads_of_keys_are_shared_in_groups(name):
    q, k, v = random_qkv(20, g=2)
    repeated = (x.repeat_interleave(2, 1) for x in (k, v))
    torch.testing.assert_close(build(name)(q, k, v), build(name)(q, *repeated))


# Performer with long keys


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("scale", [4.0, 8.0, 30.0])
def test_performer_does_not_fade_with_long_keys(scale, causal):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, 64, 64, generator=generator) for _ in range(3))
    q, k = (scale * q).requires_grad_(), scale * k
    attention = PerformerAttention(head_dim=64)
    ones = attention(q, k, torch.ones_like(v), causal=causal)  # Σ of weights
    torch.testing.assert_close(ones, torch.ones_like(ones), rtol=1e-3, atol=1e-3)
    y, softmax = attention(q, k, v, causal=causal), softmax_attention(q, k, v, causal=causal)
    assert 0.3 < y.abs().mean() / softmax.abs().mean() < 2
    (dq,) = gradients(y, [q])
    assert dq.isfinite().all() and (dq.abs().max() > 1 or scale == 30)  # a weight of 1, and zeros


def test_a_far_longer_key_to_come_changes_no_output_of_performer():
    q, k, v = random_qkv(40, dtype=torch.float32)
    attention = PerformerAttention(head_dim=D)
    before = attention(q, 20 * k, v)
    k = 20 * k
    k[:, :, 30] = 1e-3  # whose feature is by far the largest
    torch.testing.assert_close(attention(q, k, v)[:, :, :30], before[:, :, :30])


@pytest.mark.parametrize("causal", [True, False])
def test_performer_is_attention_by_its_random_features(causal):
    from replib.attention.feature_maps import favor_keys

    q, k, v = random_qkv(40)
    attention = build("performer")
    phi_q, phi_k = (favor_keys(x * D**-0.25, attention.directions) for x in (q, k))
    weights = phi_q @ phi_k.mT
    weights = weights.tril() if causal else weights
    expected = weights @ v / weights.sum(-1, keepdim=True)
    torch.testing.assert_close(attention(q, k, v, causal=causal), expected)


def test_performer_redraws_its_directions_in_training_if_asked_to():
    attention, inputs = PerformerAttention(head_dim=D, redraw_every=2), random_qkv(5)
    inputs = [x.float() for x in inputs]
    drawn = [attention.directions.clone()]
    for _ in range(5):
        attention(*inputs)
        drawn.append(attention.directions.clone())
    same = [torch.equal(a, b) for a, b in zip(drawn[:-1], drawn[1:], strict=True)]
    assert same == [True, True, False, True, False]
    resumed = PerformerAttention(head_dim=D, redraw_every=2)
    resumed.load_state_dict(attention.state_dict())
    for one in (attention, resumed):
        one(*inputs), one(*inputs)
    assert torch.equal(resumed.directions, attention.directions)
    attention.eval()
    attention(*inputs), attention(*inputs)
    assert torch.equal(resumed.directions, attention.directions)
    with pytest.raises(ValueError, match="use at least 1"):
        PerformerAttention(head_dim=D, redraw_every=0)


def test_linear_attention_takes_a_mask_and_groups_by_every_kernel():
    q, k, v = random_qkv(20, g=2, dtype=torch.float32)
    mask = torch.zeros(B, 20, dtype=torch.bool)
    mask[:, :3] = True
    expected = linear_attention(q, k, v, key_padding_mask=mask, kernel="plain")
    for kernel in (None, "torch"):
        y = linear_attention(q, k, v, key_padding_mask=mask, kernel=kernel)
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
        assert not y[:, :, :3].any()  # they see no key
