"""What `replib.attention.base` promises of every mechanism.

B batch, H heads of queries, G of keys and values, N sequence length, D query/key and value size.
"""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn.functional import elu

from replib.attention import ATTENTION, Attention, linear_attention, softmax_attention
from replib.attention.delta import delta_rule
from replib.generation import Decoder
from replib.models import CausalTransformer, TransformerConfig
from replib.packing import Packing, packed

B, H, G, D, N = 2, 4, 2, 8, 37  # LSH attention has two chunks there
MECHANISMS = [name for name, cls in ATTENTION.items() if cls.recurrent]
every_mechanism = pytest.mark.parametrize("name", MECHANISMS)


def build(name, n_heads=H, dtype=torch.float64):
    attention = ATTENTION[name].for_model(n_heads=n_heads, head_dim=D, max_len=64).to(dtype)
    generator = torch.Generator().manual_seed(3)
    for parameter in attention.parameters():  # as after training: some begin at 0
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=dtype)
    return attention


def random_qkv(n=N, b=B, heads=(H, H, H), dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(b, h, n, D, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for h in heads
    ]


def stepped(attention, state, *qkv, step="step"):
    """Outputs (B, H, N, D) a position at a time, and the last state."""
    reads = []
    for row in zip(*(x.unbind(2) for x in qkv), strict=True):
        y, state = getattr(attention, step)(state, *row)
        reads.append(y)
    return torch.stack(reads, dim=2), state


def fresh(attention, n_heads=H, dtype=torch.float64, **options):
    return attention.init_state(B, n_heads, D, dtype=dtype, **options)


def gradients(y, inputs):
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    options = {"allow_unused": True, "retain_graph": True}
    found = torch.autograd.grad(y, inputs, dy.to(y.dtype), **options)
    return [torch.zeros_like(x) if g is None else g for g, x in zip(found, inputs, strict=True)]


def close(found, expected, tolerance=1e-9):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def copied(state):
    return [x.clone() if isinstance(x, Tensor) else x for x in state]


def is_same(state, before):
    pairs = zip(state, before, strict=True)
    return all(torch.equal(x, y) if isinstance(x, Tensor) else x == y for x, y in pairs)


# One function in three forms


@every_mechanism
@pytest.mark.parametrize("max_len", [None, N + 3])
@pytest.mark.parametrize("first", [0, 1, 33, N])
def test_a_sequence_its_parts_and_its_steps_are_the_same(name, first, max_len):
    attention, qkv = build(name), random_qkv()
    expected, wanted = attention(*qkv), None
    state = fresh(attention, max_len=max_len)
    y, state = attention.prefill(state, *(x[:, :, :first] for x in qkv))
    rest, _ = attention.prefill(state, *(x[:, :, first:] for x in qkv))
    steps, _ = (
        stepped(attention, state, *(x[:, :, first:] for x in qkv)) if first < N else (rest, 0)
    )
    for found in (torch.cat([y, rest], 2), torch.cat([y, steps], 2)):
        close(found, expected)
        wanted = gradients(expected, qkv) if wanted is None else wanted
        close(gradients(found, qkv), wanted)


@every_mechanism
def test_a_state_is_a_value(name):
    attention, qkv = build(name), random_qkv()
    other = random_qkv(seed=1)
    _, state = attention.prefill(fresh(attention), *(x[:, :, :30] for x in qkv))
    before, found = copied(state), []
    for one in (qkv, other):  # two continuations of one prefix
        rest = [x[:, :, 30:] for x in one]
        found += [attention.prefill(state, *rest)[0], stepped(attention, state, *rest)[0]]
        assert is_same(state, before)
    for one, (once, steps) in zip((qkv, other), (found[:2], found[2:]), strict=True):
        whole = [torch.cat([x[:, :, :30], y[:, :, 30:]], 2) for x, y in zip(qkv, one, strict=True)]
        close(once, attention(*whole)[:, :, 30:])
        close(steps, once)


@every_mechanism
@torch.no_grad()
def test_steps_that_reuse_the_memory_give_the_same(name):
    attention, qkv = build(name), random_qkv(n=70)  # beyond a cache's first capacity
    close(stepped(attention, fresh(attention), *qkv, step="step_")[0], attention(*qkv))


# Padding


def padding_of(side, n=N):
    """Row 0 has padding on a side, row 1 none."""
    mask = torch.zeros(B, n, dtype=torch.bool)
    for one in ("left", "right"):
        if side in (one, "both"):
            mask[0, slice(5) if one == "left" else slice(n - 7, n)] = True
    return mask


@every_mechanism
@pytest.mark.parametrize("form", ["forward", "prefill"])
@pytest.mark.parametrize("side", ["left", "right", "both"])
@pytest.mark.parametrize("value", [0.0, float("nan"), 1e30])
def test_a_padded_row_is_the_row_alone_whatever_its_padding_holds(name, side, value, form):
    attention, qkv, mask = build(name), random_qkv(), padding_of(side)
    hidden = mask[:, None, :, None]
    inputs = [x if name != "lsh" and x is qkv[0] else x.masked_fill(hidden, value) for x in qkv]
    options = {"key_padding_mask": mask}
    if form == "forward":
        y = attention(*inputs, **options)
    else:
        y, state = attention.prefill(fresh(attention), *inputs, **options)
        more = random_qkv(n=3, seed=5)
        following, _ = stepped(attention, state, *more)
    real = ~mask[0]
    alone = [x[:1, :, real] for x in qkv]
    close(y[:1, :, real], attention(*alone))
    close(y[1:], attention(*(x[1:] for x in qkv)))
    found = gradients(y.masked_fill(hidden, 0), qkv)
    assert all(g.isfinite().all() for g in found)
    expected = gradients_of_the_real(attention, alone, y, mask)
    close([g[:1, :, real] for g in found], expected)
    if form == "prefill":
        whole = [torch.cat([x, z[:1]], 2) for x, z in zip(alone, more, strict=True)]
        close(following[:1], attention(*whole)[:, :, -3:])
        whole = [torch.cat([x[1:], z[1:]], 2) for x, z in zip(qkv, more, strict=True)]
        close(following[1:], attention(*whole)[:, :, -3:])


def gradients_of_the_real(attention, alone, y, mask):
    """Of the row alone, for the part of `gradients`' weights that falls on it."""
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = torch.autograd.grad(attention(*alone), alone, dy[:1, :, ~mask[0]], allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for g, x in zip(found, alone, strict=True)]


@every_mechanism
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_what_comes_later_reaches_no_earlier_output(name, value):
    attention, qkv = build(name), random_qkv()
    spoiled = [x.detach().clone() for x in qkv]
    for x in spoiled:
        x[:, :, 20:] = value
    expected = attention(*(x[:, :, :20] for x in qkv))
    close(attention(*spoiled)[:, :, :20], expected)
    close(attention.prefill(fresh(attention), *spoiled)[0][:, :, :20], expected)


@every_mechanism
def test_of_nothing_comes_nothing(name):
    attention = build(name)
    for b, n in ((0, 5), (B, 0)):
        q, k, v = random_qkv(n=n, b=b)
        mask = torch.ones(b, n, dtype=torch.bool)
        for causal in (True, False):
            for masking in ({}, {"key_padding_mask": mask}):
                y = attention(q, k, v, causal=causal, **masking)
                assert y.shape == v.shape
                y.sum().backward()
        state = attention.init_state(b, H, D, dtype=torch.float64)
        y, state = attention.prefill(state, q, k, v)
        assert y.shape == v.shape
        y, _ = attention.step(state, *(x[:, :, 0] for x in random_qkv(n=1, b=b)))
        assert y.shape == (b, H, D)
    q, k, v = random_qkv(n=3)[0], *random_qkv(n=0)[1:]
    assert torch.equal(attention(q, k, v, causal=False), torch.zeros_like(q))


# Grouped heads


@every_mechanism
@pytest.mark.parametrize("causal", [True, False])
def test_grouped_heads_are_heads_that_are_repeated(name, causal):
    grouped, repeated = build(name, n_heads=G), build(name, n_heads=H)
    for one, other in zip(grouped.parameters(), repeated.parameters(), strict=True):
        other.data = one.data.repeat_interleave(H // G, dim=0)
    qkv = random_qkv(heads=(H, G, G))
    q, k, v = qkv
    mask = padding_of("right")

    def of_all_heads(x):
        return x.repeat_interleave(H // G, dim=1)

    for masking in ({}, {"key_padding_mask": mask}):
        options = {"causal": causal} | masking
        expected = repeated(q, of_all_heads(k), of_all_heads(v), **options)
        y = grouped(q, k, v, **options)
        close(y, expected)
        close(gradients(y, qkv), gradients(expected, qkv))
    if causal:
        expected = grouped(q, k, v)
        state = fresh(grouped, n_heads=G)
        close(grouped.prefill(state, q, k, v)[0], expected)
        close(stepped(grouped, state, q, k, v)[0], expected)
        with torch.no_grad():
            close(stepped(grouped, state, q, k, v, step="step_")[0], expected)


# Autocast


@every_mechanism
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_steps_and_prefill_keep_their_accuracy_under_autocast(name, dtype):
    attention, qkv = build(name, dtype=torch.float32), random_qkv(dtype=torch.float32)
    exact = attention(*qkv)
    with torch.autocast("cpu", dtype=dtype):
        state = fresh(attention, dtype=torch.float32)
        once = attention.prefill(state, *qkv)[0]
        steps = stepped(attention, state, *qkv)[0]
        in_place = stepped(attention, state, *qkv, step="step_")[0]
    for found in (once, steps, in_place):
        assert (found - exact).abs().max() < 1e-4 * exact.abs().max().clamp(min=1)


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
    close(function(*inputs, cu_seqlens=BOUNDARIES), expected)
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
    logits, state = model.prefill(model.init_state(2), tokens[:, :4])
    close(torch.cat([logits, model.prefill(state, tokens[:, 4:])[0]], 1), expected)
    close(model(tokens, mask)[:1, 5:], alone)
    close(model.prefill(model.init_state(2), tokens, mask)[0][:1, 5:], alone)
    decoder = Decoder(model, 2)
    decoder.prefill(tokens[:, :3])
    close(torch.stack([decoder.step(x) for x in tokens[:, 3:].unbind(1)], 1), expected[:, 3:])


def test_a_state_that_grows_needs_a_prefill_of_its_own_where_there_is_padding():
    class Grows(Newcomer):
        def step(self, state, q, k, v):
            y, state = super().step(state, q, k, v)
            return y, Sums(torch.cat([state.s, state.s], -1), state.z)

    attention, qkv = Grows(), random_qkv(n=2)
    state = attention.init_state(B, H, D, dtype=torch.float64)
    with pytest.raises(NotImplementedError, match="define prefill"):
        attention.prefill(state, *qkv, key_padding_mask=torch.zeros(B, 2, dtype=torch.bool))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("name", [name for name in MECHANISMS if name != "performer"])
def test_tensors_without_data_are_attended_over_in_shape(name, causal):
    """Performer looks at how its exponents rise."""
    q, k, v = (torch.empty(B, H, N, D, device="meta") for _ in range(3))
    mask = torch.zeros(B, N, dtype=torch.bool, device="meta")
    for padding in (None, mask):
        y = build(name).to("meta")(q, k, v, causal=causal, key_padding_mask=padding)
        assert y.shape == v.shape


def test_dtypes_may_be_mixed():
    q, k, v = random_qkv()
    for name in MECHANISMS:
        y = build(name).float()(q, k.float(), v.bfloat16())
        right = build(name)(q, k, v.bfloat16().double())
        assert y.dtype == torch.bfloat16
        close(y.double(), right, 2e-2)


def test_boundaries_of_packed_sequences_may_be_a_list():
    q, k, v = random_qkv(12, b=1)
    found = linear_attention(q, k, v, cu_seqlens=[0, 5, 12])
    close(found, linear_attention(q, k, v, cu_seqlens=torch.tensor([0, 5, 12])))
