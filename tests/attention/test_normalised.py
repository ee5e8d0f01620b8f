"""The sum and the delta rule with and without attention normalisation, against loops over positions
as the paper has them (Schlag et al. 2021, section 4.2)."""

import pytest
import torch

from replib.attention import ATTENTION
from replib.attention.feature_maps import dpfp

B, H, G, D, M, N = 2, 4, 2, 6, 5, 23
RULES = [("dpfp", False), ("delta", True)]
every_rule = pytest.mark.parametrize("name, normalised", RULES)


def build(name, normalised, nu=2, n_heads=H):
    options = ATTENTION[name].Options(nu=nu, normalised=normalised)
    sizes = {"n_heads": n_heads, "head_dim": D, "max_len": N}
    attention = ATTENTION[name].for_model(**sizes, options=options).double()
    generator = torch.Generator().manual_seed(3)
    for parameter in attention.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator).double()
    return attention


def drawn(heads=(H, H, H)):
    generator = torch.Generator().manual_seed(0)
    sizes = zip(heads, (D, D, M), strict=True)
    return [
        torch.randn(B, h, N, x, generator=generator).double().requires_grad_() for h, x in sizes
    ]


def by_hand(attention, q, k, v):
    """The sum without, or the delta rule with, a position at a time."""
    phi = [dpfp(x, attention.options.nu) for x in (q, k)]
    phi = [x / (x.sum(-1, keepdim=True) + 1e-6) for x in phi]
    w = torch.zeros(*k.shape[:2], v.shape[-1], phi[1].shape[-1], dtype=v.dtype)
    z, reads = torch.zeros_like(phi[1][:, :, 0]), []
    for i in range(k.shape[2]):
        query, key = (x[:, :, i] for x in phi)
        value = v[:, :, i]
        if attention.label == "delta rule":
            beta = (k[:, :, i] * attention.to_beta).sum(-1) + attention.beta_bias
            weight = (z * key).sum(-1, keepdim=True)
            old = torch.einsum("bhmr,bhr->bhm", w, key) / torch.where(weight > 0, weight, 1)
            value = beta.sigmoid().unsqueeze(-1) * (value - old)
        w = w + value.unsqueeze(-1) * key.unsqueeze(-2)
        z = z + key
        y = torch.einsum("bhmr,bhr->bhm", w, query)
        if attention.label == "delta rule":
            y = y / ((z * query).sum(-1, keepdim=True) + 1e-6)
        reads.append(y)
    return torch.stack(reads, dim=2)


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


@every_rule
def test_outputs_and_gradients_are_those_of_the_loop(name, normalised):
    attention, inputs = build(name, normalised), drawn()
    found, expected = attention(*inputs), by_hand(attention, *inputs)
    close(found, expected)
    dy = torch.randn(found.shape, generator=torch.Generator().manual_seed(1)).double()
    parts = [*inputs, *attention.parameters()]
    for x, y in zip(
        *(torch.autograd.grad(one, parts, dy) for one in (found, expected)), strict=True
    ):
        close(x, y)


@every_rule
def test_the_recurrent_form_is_the_parallel_one_after_any_state(name, normalised):
    attention, inputs = build(name, normalised, n_heads=G), drawn(heads=(H, G, G))
    whole = attention(*inputs)
    state, reads = attention.init_state(B, G, D, M, dtype=torch.float64), []
    y, state = attention.prefill(state, *(x[:, :, :9] for x in inputs))
    for i in range(9, N):
        read, state = attention.step(state, *(x[:, :, i] for x in inputs))
        reads.append(read.unsqueeze(2))
    close(torch.cat([y, *reads], dim=2), whole)
    last = attention.prefill(attention.init_state(B, G, D, M, dtype=torch.float64), *inputs)[1]
    for x, y in zip(state, last, strict=True):
        close(x, y)


@every_rule
def test_not_causal_every_query_reads_after_the_last_write(name, normalised):
    attention, (q, k, v) = build(name, normalised), drawn()
    last = attention(k[:, :, -1:].expand_as(q), k, v)[:, :, -1]
    found = attention(k[:, :, -1:], k, v, causal=False)[:, :, 0]
    close(found, last)


@every_rule
@pytest.mark.parametrize("causal", [True, False])
def test_padding_takes_no_part(name, normalised, causal):
    attention, (q, k, v) = build(name, normalised), drawn()
    mask = torch.zeros(B, N, dtype=torch.bool)
    mask[:, 4:9] = True
    kept = [x[:, :, ~mask[0]] for x in (q, k, v)]
    with torch.no_grad():
        k[:, :, 4:9], v[:, :, 4:9] = 1e4, torch.nan
    found = attention(q, k, v, causal=causal, key_padding_mask=mask)[:, :, ~mask[0]]
    close(found, attention(*kept, causal=causal))


def test_the_default_is_as_published():
    q, k, v = drawn()
    for name, normalised in (("dpfp", True), ("delta", False)):
        assert torch.equal(build(name, None)(q, k, v), build(name, normalised)(q, k, v))
        assert not torch.allclose(build(name, None)(q, k, v), build(name, not normalised)(q, k, v))
    assert ATTENTION["delta"].Options(nu=2, normalised=True).label == "nu2 normalised"
