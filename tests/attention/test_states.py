"""States that are values, prefill, padding and what is not finite: softmax, delta, fwm and LSH.

B batch, H heads of queries, G of keys and values, N sequence length, D key size, M value size.
"""

import math

import pytest
import torch
from choices import for_model
from torch.nn.functional import scaled_dot_product_attention

from replib.attention import ATTENTION
from replib.attention.base import repeat_heads
from replib.kernels import installed

B, H, D, M = 2, 4, 8, 5
NAMES = ("softmax", "delta", "fwm", "lsh")
VARIANTS = [
    (name, i)
    for name in NAMES
    for i in ATTENTION[name].choices()
    if i not in ("cpu", "nu3", "8 rounds") and not i.startswith("original")
]
COMPILED = [("delta", "cpu")] * installed("numba")
BAD = (math.nan, math.inf, 1e30)
every_variant = pytest.mark.parametrize("name, choice", VARIANTS)


def build(name, choice=None, n_heads=H, dtype=torch.float64):
    attention = for_model(name, choice, n_heads=n_heads, head_dim=D, max_len=256)
    generator = torch.Generator().manual_seed(1)
    for parameter in attention.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return attention.to(dtype)


def random_qkv(n, *, seed=0, h=H, g=H, b=B, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(b, heads, n, size, generator=generator, dtype=torch.float64).to(dtype)
        for heads, size in ((h, D), (g, D), (g, M))
    ]


def empty_state(attention, g=H, **options):
    return attention.init_state(B, g, D, M, **{"dtype": torch.float64} | options)


def part(inputs, *bounds):
    return [x[:, :, slice(*bounds)] for x in inputs]


def stepped(attention, state, inputs, step="step"):
    reads = []
    for i in range(inputs[0].shape[2]):
        y, state = getattr(attention, step)(state, *(x[:, :, i] for x in inputs))
        reads.append(y)
    return torch.stack(reads, 2), state


def numbers(state):
    return [x.clone() for x in state if isinstance(x, torch.Tensor)]


def gradients(y, inputs):
    generator = torch.Generator().manual_seed(2)
    dy = torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.dtype)
    return torch.autograd.grad(y, inputs, dy, allow_unused=True, materialize_grads=True)


def assert_near(actual, expected):
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-9, atol=1e-10)


@every_variant
def test_step_and_prefill_leave_the_state_and_give_what_forward_does(name, choice):
    attention, inputs = build(name, choice), random_qkv(70)
    expected = attention(*inputs)
    read, first = attention.prefill(empty_state(attention), *part(inputs, 40))
    before = numbers(first)
    rest = attention.prefill(first, *part(inputs, 40, None))[0]
    again = stepped(attention, first, part(inputs, 40, None))[0]
    assert all(torch.equal(x, y) for x, y in zip(numbers(first), before, strict=True))
    consumed = stepped(attention, first, part(inputs, 40, None), "step_")[0]
    for found in (rest, again, consumed):
        assert_near([torch.cat([read, found], 2)], [expected])


@every_variant
def test_gradients_flow_through_steps_and_prefill(name, choice):
    attention, inputs = build(name, choice), [x.requires_grad_() for x in random_qkv(9)]
    sought = [*inputs, *attention.parameters()]
    expected = gradients(attention(*inputs), sought)
    read, state = attention.prefill(empty_state(attention), *part(inputs, 4))
    steps = stepped(attention, state, part(inputs, 4, None))[0]
    assert_near(gradients(torch.cat([read, steps], 2), sought), expected)


@pytest.mark.parametrize("name", ["softmax", "lsh"])
def test_a_cache_of_fixed_shapes_gives_the_same(name):
    attention, inputs = build(name), random_qkv(30)
    state = empty_state(attention, max_len=30)
    state = state._replace(length=torch.zeros((), dtype=torch.int64))
    read, state = attention.prefill(state, *part(inputs, 11))
    for step in ("step", "step_"):
        found, after = stepped(attention, state, part(inputs, 11, None), step)
        assert [x.shape for x in after] == [x.shape for x in state] and after.length == 30
        assert_near([torch.cat([read, found], 2)], [attention(*inputs)])
    with pytest.raises(ValueError, match="use a larger max_len"):
        attention.prefill(after, *part(inputs, 2))


SIDES = {"left": slice(13), "right": slice(14, 27), "middle": slice(8, 21)}


@pytest.mark.parametrize(
    "side, bad",
    [("left", None), ("right", None), ("left", math.nan), ("right", math.inf), ("middle", 1e30)],
)
@every_variant
def test_padding_reaches_no_output_gradient_or_state(name, choice, side, bad):
    attention, n = build(name, choice), 27
    padding = torch.zeros(B, n, dtype=torch.bool)
    padding[0, SIDES[side]] = True
    real = ~padding[0]
    alone = [x[:1, :, real].clone().requires_grad_() for x in random_qkv(n)]
    inputs = random_qkv(n)
    for x in inputs:
        if bad is not None:
            x[0, :, padding[0]] = bad
        x.requires_grad_()
    y, expected = attention(*inputs, key_padding_mask=padding), attention(*alone)
    assert_near([y[:1, :, real]], [expected])
    found = gradients(y[:1, :, real], inputs)
    assert_near([x[:1, :, real] for x in found], gradients(expected, alone))
    assert not any(x[0, :, padding[0]].any() for x in found)

    queries = random_qkv(5, seed=1)[0]
    y = attention(queries, *inputs[1:], causal=False, key_padding_mask=padding)
    assert_near([y[:1]], [attention(queries[:1], *alone[1:], causal=False)])
    assert all(x.isfinite().all() for x in gradients(y, inputs[1:]))

    with torch.no_grad():
        state = empty_state(attention)
        for bounds in ((10,), (10, None)):
            mask = padding[:, slice(*bounds)]
            _, state = attention.prefill(state, *part(inputs, *bounds), key_padding_mask=mask)
        more = random_qkv(4, seed=3)
        whole = [torch.cat([x, z[:1]], 2) for x, z in zip(alone, more, strict=True)]
        for step in ("step", "step_"):
            y = stepped(attention, state, more, step)[0]
            assert_near([y[:1]], [attention(*whole)[:, :, -4:]])


@every_variant
@pytest.mark.parametrize("causal", [True, False])
def test_a_sample_that_is_all_padding_reads_0_with_gradients_of_0(name, choice, causal):
    attention, inputs = build(name, choice), [x.requires_grad_() for x in random_qkv(6)]
    padding = torch.zeros(B, 6, dtype=torch.bool)
    padding[0] = True
    y = attention(*inputs, causal=causal, key_padding_mask=padding)
    assert torch.equal(y[0], torch.zeros_like(y[0]))
    for x in gradients(y, inputs):
        assert x.isfinite().all() and not x[0].any()


@pytest.mark.parametrize("choice", ATTENTION["softmax"].kernels)
def test_causal_softmax_under_a_mask_is_torchs(choice):
    q, k, v = random_qkv(20, g=2)
    padding = torch.zeros(B, 20, dtype=torch.bool)
    padding[0, 3:7], padding[1, 15:] = True, True
    y = build("softmax", choice)(q, k, v, key_padding_mask=padding)
    visible = torch.ones(20, 20, dtype=torch.bool).tril() & ~padding[:, None, None]
    k, v = (repeat_heads(x, H) for x in (k, v))
    assert_near([y], [scaled_dot_product_attention(q, k, v, attn_mask=visible)])


@pytest.mark.parametrize("which", range(3), ids="qkv")
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("name, choice", [*VARIANTS, *COMPILED])
def test_what_is_not_finite_reaches_no_earlier_output(name, choice, bad, which):
    dtype = torch.float32 if choice == "cpu" else torch.float64
    attention = build(name, choice, dtype=dtype)
    inputs, at = random_qkv(70, dtype=dtype), 50
    expected = attention(*inputs)
    inputs[which][:, :, at] = bad
    y = attention(*inputs)
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if choice == "cpu" else {}
    torch.testing.assert_close(y[:, :, :at], expected[:, :, :at], **tolerance)
    steps = stepped(attention, empty_state(attention, dtype=dtype), inputs)[0]
    assert torch.equal(y.isfinite(), steps.isfinite())
    state = attention.prefill(empty_state(attention, dtype=dtype), *part(inputs, 20))[1]
    y = attention.prefill(state, *part(inputs, 20, None))[0]
    torch.testing.assert_close(y[:, :, : at - 20], expected[:, :, 20:at], **tolerance)


@pytest.mark.parametrize("causal", [True, False])
@every_variant
def test_heads_of_keys_are_shared_by_groups_of_queries(name, choice, causal):
    attention, all_heads = build(name, choice, 2), build(name, choice)
    for one, every in zip(attention.parameters(), all_heads.parameters(), strict=True):
        every.data = one.data.repeat_interleave(2, dim=0)
    q, k, v = random_qkv(40, g=2)
    expected = all_heads(q, repeat_heads(k, H), repeat_heads(v, H), causal=causal)
    assert_near([attention(q, k, v, causal=causal)], [expected])
    if not causal:
        return
    state = empty_state(attention, 2)
    assert_near([attention.prefill(state, q, k, v)[0]], [expected])
    for step in ("step", "step_"):
        found, after = stepped(attention, empty_state(attention, 2), (q, k, v), step)
        assert_near([found], [expected])
    assert (after.values if name in ("softmax", "lsh") else after.s).shape[1] == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NAMES)
def test_steps_under_autocast_are_as_exact_as_float32(name, dtype):
    attention, inputs = build(name, dtype=torch.float32), random_qkv(40, dtype=torch.float32)
    expected = attention(*inputs)
    with torch.no_grad(), torch.autocast("cpu", dtype=dtype):
        state = empty_state(attention, dtype=torch.float32)
        for step in ("step", "step_"):
            y = stepped(attention, state, inputs, step)[0]
            torch.testing.assert_close(y, expected, rtol=1e-3, atol=1e-4)
        rounded = [x.to(dtype) for x in inputs]  # as projections give them
        for y in (
            stepped(attention, state, rounded)[0],
            attention.prefill(state, *rounded)[0],
        ):
            assert y.dtype == dtype
            torch.testing.assert_close(y, attention(*rounded).to(dtype), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("sizes", [(0, 5, 5), (2, 0, 0), (2, 3, 0), (2, 0, 4)])
@pytest.mark.parametrize("name, choice", [*VARIANTS, *COMPILED])
def test_where_nothing_is_there_nothing_is_read(name, choice, sizes):
    b, n_queries, n_keys = sizes
    attention = build(name, choice, dtype=torch.float32)
    for causal in (True, False)[n_queries != n_keys :]:
        for padding in (None, torch.zeros(b, n_keys, dtype=torch.bool)):
            q = torch.zeros(b, H, n_queries, D, requires_grad=True)
            k, v = (torch.zeros(b, H, n_keys, size, requires_grad=True) for size in (D, M))
            y = attention(q, k, v, causal=causal, key_padding_mask=padding)
            assert y.shape == (b, H, n_queries, M) and not y.any()
            y.sum().backward()
            if causal:
                state = attention.init_state(b, H, D, M)
                y, after = attention.prefill(state, q, k, v, key_padding_mask=padding)
                assert y.shape == (b, H, n_queries, M)
                assert torch.equal(after[0], state[0])


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("name, choice", [*VARIANTS, *COMPILED])
def test_gradients_of_bfloat16_keep_their_digits_where_values_have_a_mean(name, choice, causal):
    attention = build(name, choice, dtype=torch.float32)
    rounded = [x.requires_grad_() for x in random_qkv(300, b=1, dtype=torch.bfloat16)]
    with torch.no_grad():
        rounded[2] += 5
    exact = [x.detach().double().requires_grad_() for x in rounded]
    wide = build(name, "plain" if choice == "cpu" else choice)
    found = gradients(attention(*rounded, causal=causal), rounded)
    for a, e in zip(found, gradients(wide(*exact, causal=causal), exact), strict=True):
        assert (a.double() - e).norm() <= 0.02 * e.norm()
