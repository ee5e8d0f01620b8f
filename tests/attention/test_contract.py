"""What `replib.attention.base` promises of every mechanism.

B batch, H heads of queries, G of keys and values, N sequence length, D query/key size, M value
size.
"""

import math
from typing import NamedTuple

import pytest
import torch
from choices import for_model
from tensors import gradients
from torch import Tensor
from torch.nn.functional import elu, scaled_dot_product_attention

from replib.attention import ATTENTION, Attention, linear_attention, softmax_attention
from replib.attention.base import repeat_heads
from replib.attention.delta import delta_rule
from replib.generation import Decoder
from replib.kernels import installed
from replib.models import CausalTransformer, TransformerConfig
from replib.packing import Packing, packed

B, H, G, D, M, N = 2, 4, 2, 8, 5, 37  # LSH attention has two chunks there
MECHANISMS = [name for name, cls in ATTENTION.items() if cls.recurrent]
# The compiled kernels are for float32; other sizes of the same options say no more.
LEFT_OUT = ("cpu", "cuda", "nu3", "8 rounds", "128", "512")
VARIANTS = [
    (name, choice)
    for name in MECHANISMS
    for choice in ATTENTION[name].choices()
    if choice not in LEFT_OUT and not choice.startswith("original")  # which sees the future
]
COMPILED = [("linear", "cpu"), ("delta", "cpu")] if installed("numba") else []
NAN, INF, FAR = math.nan, math.inf, 1e30
every_mechanism = pytest.mark.parametrize("name", MECHANISMS)
every_variant = pytest.mark.parametrize("name, choice", VARIANTS)
every_kernel = pytest.mark.parametrize("name, choice", [*VARIANTS, *COMPILED])


def build(name, choice=None, n_heads=H, dtype=torch.float64):
    attention = for_model(name, choice, n_heads=n_heads, head_dim=D, max_len=64).to(dtype)
    generator = torch.Generator().manual_seed(3)
    for parameter in attention.parameters():  # as after training: some begin at 0
        drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data = drawn.to(dtype)
    return attention


def dtype_of(choice):
    return torch.float32 if choice == "cpu" else torch.float64


def random_qkv(n=N, b=B, heads=(H, H, H), dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    drawn = (
        torch.randn(b, h, n, size, generator=generator, dtype=torch.float64)
        for h, size in zip(heads, (D, D, M), strict=True)
    )
    return [x.to(dtype).requires_grad_() for x in drawn]


def stepped(attention, state, *qkv, step="step"):
    """Outputs (B, H, N, M) a position at a time, and the last state."""
    reads = []
    for row in zip(*(x.unbind(2) for x in qkv), strict=True):
        y, state = getattr(attention, step)(state, *row)
        reads.append(y)
    return torch.stack(reads, dim=2), state


def fresh(attention, n_heads=H, dtype=torch.float64, **options):
    return attention.init_state(B, n_heads, D, M, dtype=dtype, **options)


def close(found, expected, tolerance=1e-9):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def copied(state):
    return [x.clone() if isinstance(x, Tensor) else x for x in state]


def is_same(state, before):
    pairs = zip(state, before, strict=True)
    return all(torch.equal(x, y) if isinstance(x, Tensor) else x == y for x, y in pairs)


# One function in three forms


@every_variant
@pytest.mark.parametrize("first, n, max_len", [(0, N, None), (1, N, 40), (33, 70, None), (N, N, N)])
@pytest.mark.parametrize("scale", [1.0, 8.0])  # of queries and keys: Performer's long ones fade
def test_a_sequence_its_parts_and_its_steps_are_the_same(name, choice, first, n, max_len, scale):
    attention, (q, k, v) = build(name, choice), random_qkv(n)
    sought = [q, k, v, *attention.parameters()]
    qkv = scale * q, scale * k, v
    expected, wanted = attention(*qkv), None
    y, state = attention.prefill(fresh(attention, max_len=max_len), *(x[:, :, :first] for x in qkv))
    rest, _ = attention.prefill(state, *(x[:, :, first:] for x in qkv))
    steps, _ = (
        stepped(attention, state, *(x[:, :, first:] for x in qkv)) if first < n else (rest, 0)
    )
    for found in (torch.cat([y, rest], 2), torch.cat([y, steps], 2)):
        close(found, expected)
        wanted = gradients(expected, sought) if wanted is None else wanted
        close(gradients(found, sought), wanted, 1e-8)


@every_variant
def test_a_state_is_a_value(name, choice):
    attention, qkv = build(name, choice), random_qkv()
    other = random_qkv(seed=1)
    _, state = attention.prefill(fresh(attention), *(x[:, :, :30] for x in qkv))
    before, found = copied(state), []
    for one in (qkv, other):  # two continuations of one prefix
        rest = [x[:, :, 30:] for x in one]
        found += [attention.prefill(state, *rest)[0], stepped(attention, state, *rest)[0]]
        _, after = attention.prefill(state, *(x[:, :, :0] for x in rest))
        attention.step_(after, *(x[:, :, 0] for x in rest))
        assert is_same(state, before)
    for one, (once, steps) in zip((qkv, other), (found[:2], found[2:]), strict=True):
        whole = [torch.cat([x[:, :, :30], y[:, :, 30:]], 2) for x, y in zip(qkv, one, strict=True)]
        close(once, attention(*whole)[:, :, 30:])
        close(steps, once)


@every_variant
@torch.no_grad()
def test_steps_that_reuse_the_memory_give_the_same(name, choice):
    attention, qkv = build(name, choice), random_qkv(n=70)  # beyond a cache's first capacity
    state = fresh(attention)
    y, after = stepped(attention, state, *qkv, step="step_")
    close(y, attention(*qkv))
    if name == "linear":
        assert after.s.data_ptr() == state.s.data_ptr()


@pytest.mark.parametrize("name", ["softmax", "lsh"])
def test_a_cache_of_fixed_shapes_gives_the_same(name):
    attention, qkv = build(name), random_qkv(30)
    state = fresh(attention, max_len=30)
    state = state._replace(length=torch.zeros((), dtype=torch.int64))
    read, state = attention.prefill(state, *(x[:, :, :11] for x in qkv))
    for step in ("step", "step_"):
        found, after = stepped(attention, state, *(x[:, :, 11:] for x in qkv), step=step)
        assert [x.shape for x in after] == [x.shape for x in state] and after.length == 30
        close(torch.cat([read, found], 2), attention(*qkv))
    with pytest.raises(ValueError, match="use a larger max_len"):
        attention.prefill(after, *(x[:, :, :2] for x in qkv))


# Padding


def padding_of(side, n=N):
    """Row 0 has padding on a side or in the middle, row 1 none."""
    mask = torch.zeros(B, n, dtype=torch.bool)
    ends = {"left": [slice(5)], "right": [slice(n - 7, n)], "middle": [slice(8, 21)]}
    for where in ends["left"] + ends["right"] if side == "both" else ends[side]:
        mask[0, where] = True
    return mask


@pytest.mark.parametrize(
    "side, value",
    [
        ("left", None),
        ("right", None),
        ("left", NAN),
        ("right", INF),
        ("middle", FAR),
        ("both", NAN),
    ],
)
@every_variant
def test_padding_reaches_no_output_gradient_or_state(name, choice, side, value):
    attention, padding = build(name, choice), padding_of(side)
    real = ~padding[0]
    alone = [x[:1, :, real].detach().requires_grad_() for x in random_qkv()]
    inputs = [x.detach() for x in random_qkv()]
    for x in inputs:
        if value is not None:
            x[0, :, padding[0]] = value
        x.requires_grad_()
    y, expected = attention(*inputs, key_padding_mask=padding), attention(*alone)
    close(y[:1, :, real], expected)
    close(y[1:], attention(*(x[1:] for x in inputs)))
    found = gradients(y[:1, :, real], inputs)
    close([x[:1, :, real] for x in found], list(gradients(expected, alone)))
    assert not any(x[0, :, padding[0]].any() for x in found)

    queries = random_qkv(5, seed=1)[0]
    y = attention(queries, *inputs[1:], causal=False, key_padding_mask=padding)
    close(y[:1], attention(queries[:1], *alone[1:], causal=False))
    assert all(x.isfinite().all() for x in gradients(y, inputs[1:]))

    with torch.no_grad():
        state = fresh(attention)
        for part in (slice(10), slice(10, None)):
            mask = padding[:, part]
            some = (x[:, :, part] for x in inputs)
            _, state = attention.prefill(state, *some, key_padding_mask=mask)
        more = random_qkv(4, seed=3)
        found = [stepped(attention, state, *more, step=step)[0] for step in ("step", "step_")]
        for row, others in ((slice(1), alone), (slice(1, 2), [x[1:] for x in inputs])):
            whole = [torch.cat([x, z[row]], 2) for x, z in zip(others, more, strict=True)]
            for y in found:
                close(y[row], attention(*whole)[:, :, -4:])


@every_variant
@pytest.mark.parametrize("causal", [True, False])
def test_a_sample_that_is_all_padding_reads_0_with_gradients_of_0(name, choice, causal):
    attention, inputs = build(name, choice), random_qkv(6)
    padding = torch.zeros(B, 6, dtype=torch.bool)
    padding[0] = True
    y = attention(*inputs, causal=causal, key_padding_mask=padding)
    assert torch.equal(y[0], torch.zeros_like(y[0]))
    for x in gradients(y, inputs):
        assert x.isfinite().all() and not x[0].any()


@pytest.mark.parametrize("choice", ATTENTION["softmax"].kernels)
def test_causal_softmax_under_a_mask_is_torchs(choice):
    q, k, v = random_qkv(20, heads=(H, G, G))
    padding = torch.zeros(B, 20, dtype=torch.bool)
    padding[0, 3:7], padding[1, 15:] = True, True
    y = build("softmax", choice)(q, k, v, key_padding_mask=padding)
    visible = torch.ones(20, 20, dtype=torch.bool).tril() & ~padding[:, None, None]
    k, v = (repeat_heads(x, H) for x in (k, v))
    close(y, scaled_dot_product_attention(q, k, v, attn_mask=visible))


# What is not finite, and what is not there


@pytest.mark.parametrize("bad, which", [(NAN, 0), (NAN, 1), (NAN, 2), (INF, 2), (FAR, 1)])
@every_kernel
def test_what_is_not_finite_reaches_no_earlier_output(name, choice, bad, which):
    dtype, tolerance = dtype_of(choice), 1e-5 if choice == "cpu" else 1e-9
    attention, at = build(name, choice, dtype=dtype), 50
    inputs = [x.detach() for x in random_qkv(70, dtype=dtype)]
    expected = attention(*inputs)
    inputs[which][:, :, at] = bad
    y = attention(*inputs)
    close(y[:, :, :at], expected[:, :, :at], tolerance)
    steps = stepped(attention, fresh(attention, dtype=dtype), *inputs)[0]
    assert torch.equal(y.isfinite(), steps.isfinite())
    some = (x[:, :, :20] for x in inputs)
    state = attention.prefill(fresh(attention, dtype=dtype), *some)[1]
    y = attention.prefill(state, *(x[:, :, 20:] for x in inputs))[0]
    close(y[:, :, : at - 20], expected[:, :, 20:at], tolerance)


@pytest.mark.parametrize("sizes", [(0, 5, 5), (B, 0, 0), (B, 3, 0), (B, 0, 4)])
@every_kernel
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
@pytest.mark.parametrize("name", [name for name in MECHANISMS if name != "performer"])
def test_tensors_without_data_are_attended_over_in_shape(name, causal):
    """Performer looks at how its exponents rise."""
    q, k, v = (torch.empty(B, H, N, D, device="meta") for _ in range(3))
    mask = torch.zeros(B, N, dtype=torch.bool, device="meta")
    for padding in (None, mask):
        y = build(name).to("meta")(q, k, v, causal=causal, key_padding_mask=padding)
        assert y.shape == v.shape


# Grouped heads


@every_variant
@pytest.mark.parametrize("causal", [True, False])
def test_grouped_heads_are_heads_that_are_repeated(name, choice, causal):
    grouped, repeated = build(name, choice, n_heads=G), build(name, choice)
    for one, other in zip(grouped.parameters(), repeated.parameters(), strict=True):
        other.data = one.data.repeat_interleave(H // G, dim=0)
    qkv = random_qkv(heads=(H, G, G))
    q, k, v = qkv
    for masking in ({}, {"key_padding_mask": padding_of("right")}):
        options = {"causal": causal} | masking
        expected = repeated(q, repeat_heads(k, H), repeat_heads(v, H), **options)
        y = grouped(q, k, v, **options)
        close(y, expected)
        close(gradients(y, qkv), gradients(expected, qkv))
    if causal:
        expected = grouped(q, k, v)
        close(grouped.prefill(fresh(grouped, G), q, k, v)[0], expected)
        for step in ("step", "step_"):
            found, state = stepped(grouped, fresh(grouped, G), q, k, v, step=step)
            close(found, expected)
        assert (state.s if hasattr(state, "s") else state.values).shape[1] == G


# Precision


@every_mechanism
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_steps_and_prefill_keep_their_accuracy_under_autocast(name, dtype):
    attention, qkv = build(name, dtype=torch.float32), random_qkv(dtype=torch.float32)
    exact, rounded = attention(*qkv), [x.to(dtype) for x in qkv]  # as projections give them
    with torch.autocast("cpu", dtype=dtype):
        for given, right, tolerance in (
            (qkv, exact, 1e-4),
            (rounded, attention(*rounded), 2e-2),
        ):
            state = fresh(attention, dtype=torch.float32)
            found = [attention.prefill(state, *given)[0]]
            found += [stepped(attention, state, *given, step=x)[0] for x in ("step", "step_")]
            for y in found:
                assert y.dtype == given[2].dtype
                assert (y - right).abs().max() < tolerance * right.abs().max().clamp(min=1)


@pytest.mark.parametrize("causal", [True, False])
@every_kernel
def test_gradients_of_bfloat16_keep_their_digits_where_values_have_a_mean(name, choice, causal):
    attention = build(name, choice, dtype=torch.float32)
    rounded = random_qkv(300, b=1, dtype=torch.bfloat16)
    with torch.no_grad():
        rounded[2] += 5
    exact = [x.detach().double().requires_grad_() for x in rounded]
    wide = build(name, "plain" if choice == "cpu" else choice)
    found = gradients(attention(*rounded, causal=causal), rounded)
    for a, e in zip(found, gradients(wide(*exact, causal=causal), exact), strict=True):
        assert (a.double() - e).norm() <= 0.02 * e.norm()


def test_dtypes_may_be_mixed():
    q, k, v = random_qkv()
    for name in MECHANISMS:
        y = build(name).float()(q, k.float(), v.bfloat16())
        right = build(name)(q, k, v.bfloat16().double())
        assert y.dtype == torch.bfloat16
        close(y.double(), right, 2e-2)


# Packed sequences

BOUNDARIES = torch.tensor([0, 1, 6, 6, 23, 24, N])


@every_mechanism
@pytest.mark.parametrize("causal", [True, False])
def test_packed_sequences_are_the_sequences_alone(name, causal):
    attention, qkv = build(name), random_qkv(b=1)

    def attend(*qkv, **options):
        return attention(*qkv, causal=causal, **options)

    spans = [(a, b) for a, b in BOUNDARIES.unfold(0, 2, 1).tolist() if b > a]
    expected = torch.cat([attend(*(x[:, :, a:b] for x in qkv)) for a, b in spans], dim=2)
    y = packed(attend, BOUNDARIES, *qkv, causal=causal)
    close(y, expected)
    close(gradients(y, qkv), gradients(expected, qkv))


@pytest.mark.parametrize("function", [linear_attention, softmax_attention, delta_rule])
def test_functions_take_packed_sequences(function):
    inputs = random_qkv(b=1, heads=(H, G, G))
    if function is delta_rule:
        inputs = [*(x.softmax(-1) for x in inputs[:2]), inputs[2], inputs[2].sigmoid().amax(-1)]
    spans = [(a, b) for a, b in BOUNDARIES.unfold(0, 2, 1).tolist() if b > a]
    expected = torch.cat([function(*(x[:, :, a:b] for x in inputs)) for a, b in spans], dim=2)
    for boundaries in (BOUNDARIES, BOUNDARIES.tolist()):
        close(function(*inputs, cu_seqlens=boundaries), expected)
    with pytest.raises(ValueError, match="use the 37 positions"):
        function(*inputs, cu_seqlens=BOUNDARIES[:-1])
    if function is not delta_rule:
        mask = torch.zeros(1, N, dtype=torch.bool)
        with pytest.raises(ValueError, match="packed sequences have no padding"):
            function(*inputs, cu_seqlens=BOUNDARIES, key_padding_mask=mask)


def test_packs_are_padded_by_less_than_they_hold():
    lengths = torch.randint(1, 1000, (50,), generator=torch.Generator().manual_seed(0))
    boundaries = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
    total = int(boundaries[-1])
    packing = Packing(boundaries, (1, total), torch.device("cpu"))
    assert sum(index.numel() for index, _ in packing.groups) < 2 * total
    alone = torch.cat([torch.arange(int(n)) for n in lengths])
    assert torch.equal(packing.positions[0], alone)


@pytest.mark.parametrize(
    "boundaries, options, message",
    [
        ([1, 5], {}, "begins with 1: use 0"),
        ([0, 4, 2, 5], {}, "falls"),
        ([0, 4], {}, "ends with 4: use the 5 positions"),
        ([0.0, 5.0], {}, "use integers"),
        ([[0, 5]], {}, "use integers"),
        ([0, 5], {"b": 2}, "a batch of 2 with cu_seqlens"),
    ],
)
def test_boundaries_that_are_not_those_of_the_pack_are_refused(boundaries, options, message):
    qkv = random_qkv(n=5, **({"b": 1} | options))
    with pytest.raises(ValueError, match=message):
        packed(build("softmax"), torch.tensor(boundaries), *qkv)


# A mechanism of one's own


class Sums(NamedTuple):
    s: Tensor
    z: Tensor


class Newcomer(Attention):
    """Linear attention as its equations stand: what the base class says to define, and no more."""

    label = "newcomer"
    recurrent = True

    def forward(self, q, k, v, *, causal=True, key_padding_mask=None):
        weights = (elu(q) + 1) @ (elu(k) + 1).mT
        weights = weights.tril() if causal else weights
        if key_padding_mask is not None:
            weights = weights.masked_fill(key_padding_mask[:, None, None], 0)
        return weights @ v / (weights.sum(-1, keepdim=True) + 1e-6)

    def init_state(
        self,
        batch_size,
        n_heads,
        head_dim,
        value_dim=None,
        *,
        dtype=torch.float32,
        device="cpu",
        max_len=None,
    ):
        s = torch.zeros(batch_size, n_heads, head_dim, value_dim or head_dim, dtype=dtype)
        return Sums(s.to(device), s[..., 0].to(device))

    def step(self, state, q, k, v):
        q, k = elu(q) + 1, elu(k) + 1
        s, z = state.s + k.unsqueeze(-1) * v.unsqueeze(-2), state.z + k
        y = (q.unsqueeze(-2) @ s).squeeze(-2)
        return y / ((q * z).sum(-1, keepdim=True) + 1e-6), Sums(s, z)


class Tupled(Newcomer):
    """The same with a state that is a plain tuple."""

    def init_state(self, *sizes, **options):
        return tuple(super().init_state(*sizes, **options))

    def step(self, state, q, k, v):
        y, state = super().step(Sums(*state), q, k, v)
        return y, tuple(state)


@pytest.mark.parametrize("mechanism", [Newcomer, Tupled])
def test_who_defines_what_the_base_class_asks_for_has_the_rest(monkeypatch, mechanism):
    monkeypatch.setitem(ATTENTION, "newcomer", mechanism)
    config = TransformerConfig(
        attention="newcomer", n_layers=2, n_heads=2, d_model=16, d_feedforward=16, dropout=0.0
    )
    torch.manual_seed(0)
    model = CausalTransformer(config, vocab_size=7, max_len=20).double().eval()
    tokens = torch.randint(7, (2, 9), generator=torch.Generator().manual_seed(0))
    mask = padding_of("left", n=9)
    expected, alone = model(tokens), model(tokens[:1, 5:])
    close(model(tokens, mask)[:1, 5:], alone)
    close(Decoder(model, 2).prefill(tokens, mask)[0], alone[0, -1])
    decoder = Decoder(model, 2)
    decoder.prefill(tokens[:, :3])
    decoder = decoder.fork()
    close(torch.stack([decoder.step(x) for x in tokens[:, 3:].unbind(1)], 1), expected[:, 3:])


def test_a_state_that_grows_needs_a_prefill_of_its_own_where_there_is_padding():
    class Grows(Newcomer):
        def step(self, state, q, k, v):
            y, state = super().step(state, q, k, v)
            return y, Sums(torch.cat([state.s, state.s], -1), state.z)

    attention, qkv = Grows(), random_qkv(n=2)
    state = fresh(attention)
    with pytest.raises(NotImplementedError, match="define prefill"):
        attention.prefill(state, *qkv, key_padding_mask=torch.zeros(B, 2, dtype=torch.bool))
