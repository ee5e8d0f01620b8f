"""Performer, DPFP, relu, delta rule, fast weight memory and LSH attention, each against an oracle
of its own.

B batch, H heads, N sequence length, D query/key size, M value size, m random directions.
"""

import math
from copy import deepcopy
from itertools import product

import numpy as np
import pytest
import torch
from choices import CAUSAL, for_model
from tensors import gradients, random_qkv

from replib.attention import ATTENTION, softmax_attention
from replib.attention.dpfp import DPFPAttention
from replib.attention.feature_maps import (
    FEATURE_MAPS,
    MAX_EXPONENT,
    dpfp,
    favor_keys,
    orthogonal_directions,
)
from replib.attention.fwm import FWMAttention
from replib.attention.lsh import LSHAttention, buckets
from replib.attention.performer import PerformerAttention
from replib.attention.relu import ReluAttention
from replib.kernels import KERNELS, why_not
from replib.kernels.retrieval import fwm

B, H, D, M = 2, 3, 8, 5
VARIANTS = [(name, i) for name, cls in ATTENTION.items() for i in (None, *cls.choices())]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("name, choice", VARIANTS)
def test_float16_gives_what_float64_does(name, choice, causal):
    if causal and name not in CAUSAL:
        return
    kind = {"device_type": "cpu", "dtype": torch.float16, "head_dim": D}
    attention = for_model(name, choice, n_heads=H, head_dim=D, max_len=64)
    rounded = [x.half().requires_grad_() for x in random_qkv(40)]
    if ATTENTION[name].unavailable(attention.kernel, **kind):
        with pytest.raises(ValueError, match="use kernel='torch'"):
            attention(*rounded)
        return
    exact = [x.detach().double().requires_grad_() for x in rounded]
    y = attention(*rounded, causal=causal)
    expected = deepcopy(attention).double()(*exact, causal=causal)
    found, expected = ([x, *gradients(x, z)] for x, z in ((y, rounded), (expected, exact)))
    for a, e in zip(found, expected, strict=True):
        assert a.dtype == torch.float16
        assert (a.double() - e).norm() <= 4e-3 * e.norm()


# FAVOR+


def directions_of(n_directions, seed, d=D):
    generator = torch.Generator().manual_seed(seed)
    return orthogonal_directions(d, n_directions, generator, dtype=torch.float64)


def test_directions_are_orthogonal_in_blocks_and_as_long_as_gaussian_vectors():
    w = directions_of(3 * D + 2, 0)
    for first in range(0, w.shape[1], D):
        block = w[:, first : first + D]
        cosines = block.T @ block / (block.norm(dim=0)[:, None] * block.norm(dim=0))
        torch.testing.assert_close(cosines, torch.eye(block.shape[1], dtype=w.dtype))
    lengths = directions_of(8000, 1).square().sum(0)
    assert lengths.mean().item() == pytest.approx(D, rel=0.05)
    assert lengths.var().item() == pytest.approx(2 * D, rel=0.15)  # of chi-square


def test_each_direction_is_uniform_on_the_sphere():
    """The Q of a QR decomposition without the correction of signs has a first row of one sign."""
    blocks = torch.stack([directions_of(D, seed) for seed in range(2000)])  # (draws, D, D)
    share = (blocks > 0).double().mean(0)
    assert (share - 0.5).abs().max() < 5 * 0.5 / math.sqrt(len(blocks))
    unit = blocks / blocks.norm(dim=1, keepdim=True)
    covariance = torch.einsum("nij,nkj->ik", unit, unit) / len(blocks)
    torch.testing.assert_close(covariance, torch.eye(D, dtype=unit.dtype), atol=0.05, rtol=0)


def test_features_of_favor_have_the_softmax_kernel_as_their_expectation():
    x, y = torch.randn(2, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64) / 2
    w = directions_of(200_000, 1)
    product = (favor_keys(x, w) * favor_keys(y, w)).sum()
    assert product.item() == pytest.approx(torch.exp(x @ y).item(), rel=0.01)


MANY = PerformerAttention.Options(n_directions=128)


def performer(n_directions, seed):
    attention = PerformerAttention(head_dim=D).double()
    attention.directions = directions_of(n_directions, seed)
    return attention


@pytest.mark.parametrize("causal", [True, False])
def test_performer_converges_to_softmax_attention_as_one_over_root_m(causal):
    q, k, v = random_qkv(24)
    q, k = 0.3 * q, 0.3 * k  # the variance of a feature grows as exp(|q + k|²)
    expected = softmax_attention(q, k, v, causal=causal)
    sizes, errors = (64, 256, 1024, 4096), []
    for m in sizes:
        squares = [
            (performer(m, seed)(q, k, v, causal=causal) - expected).square().mean()
            for seed in range(16)
        ]
        errors.append(torch.stack(squares).mean().sqrt().item())
    slope = np.polyfit(np.log(sizes), np.log(errors), 1)[0]
    assert slope == pytest.approx(-0.5, abs=0.08)
    assert errors[-1] < 0.05 * expected.std()


@pytest.mark.parametrize("scale", [1e-3, 10.0, 1e3])
@pytest.mark.parametrize("d", [8, 256])
def test_performer_stays_finite_in_float32(scale, d):
    q, k, v = random_qkv(40, scale=scale, dtype=torch.float32, d=d)
    inputs = [x.requires_grad_() for x in (q, k, v)]
    attention = PerformerAttention(head_dim=d, options=MANY)
    y = attention(*inputs)
    assert y.isfinite().all() and all(g.isfinite().all() for g in gradients(y, inputs))
    assert favor_keys(k, attention.directions).amax() <= math.exp(MAX_EXPONENT)


def test_directions_stay_as_drawn_until_they_are_resampled():
    first, second = (PerformerAttention(head_dim=D, options=MANY) for _ in range(2))
    assert torch.equal(first.directions, second.directions)
    first(*random_qkv(5, dtype=torch.float32))
    assert torch.equal(first.directions, second.directions)
    first.resample(torch.Generator().manual_seed(5))
    assert not torch.equal(first.directions, second.directions)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.directions, second.directions)


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
    (dq,) = torch.autograd.grad(y.square().sum(), q)
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
    q, k, v = random_qkv(40)
    attention = PerformerAttention(head_dim=D).double()
    phi_q, phi_k = (favor_keys(x * D**-0.25, attention.directions) for x in (q, k))
    weights = phi_q @ phi_k.mT
    weights = weights.tril() if causal else weights
    expected = weights @ v / weights.sum(-1, keepdim=True)
    torch.testing.assert_close(attention(q, k, v, causal=causal), expected)


# DPFP


@pytest.mark.parametrize("nu", [1, 2, 3])
def test_dpfp_is_equation_37_and_38(nu):
    x = random_qkv(6)[0]
    r = np.maximum(np.concatenate([x.numpy(), -x.numpy()], -1), 0)
    found = dpfp(x, nu).numpy().reshape(*x.shape[:-1], nu, 2 * D)
    for j in range(1, nu + 1):
        for i in range(2 * D):
            np.testing.assert_array_equal(
                found[..., j - 1, i], r[..., i] * r[..., (i - j) % (2 * D)]
            )


def test_dpfp_attention_is_linear_attention_of_its_features():
    q, k, v = random_qkv(20)
    for nu in (1, 2, 3, 5):
        phi_q, phi_k = dpfp(q, nu), dpfp(k, nu)
        weights = (phi_q @ phi_k.mT).tril()
        expected = weights @ v / (weights.sum(-1, keepdim=True) + 1e-6)
        attention = DPFPAttention(options=DPFPAttention.Options(nu=nu))
        torch.testing.assert_close(attention(q, k, v), expected)


@pytest.mark.parametrize("nu", [0, D, D + 1])
def test_a_nu_whose_features_are_0_or_repeat_is_refused(nu):
    with pytest.raises(ValueError, match=f"nu {nu}: use nu 1 to {D - 1}"):
        dpfp(torch.zeros(D), nu)


# relu


def relu_weights(q, k, causal):
    weights = np.maximum(q.numpy(), 0) @ np.maximum(k.numpy(), 0).swapaxes(-1, -2)
    return np.tril(weights) if causal else weights


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kernel", [None, "torch", "plain"])
def test_relu_attention_weighs_values_by_products_of_what_is_positive(kernel, causal):
    q, k, v = random_qkv(70)
    weights = relu_weights(q, k, causal)
    expected = weights @ v.numpy() / (weights.sum(-1, keepdims=True) + 1e-6)
    y = ReluAttention(kernel=kernel)(q, k, v, causal=causal)
    torch.testing.assert_close(y, torch.from_numpy(expected), rtol=1e-9, atol=1e-12)


def relu_kernels():
    kind = {"device_type": "cpu", "dtype": torch.float32, "head_dim": D, "value_dim": M}
    return [None, "plain", *(kernel for kernel in KERNELS if why_not(kernel, **kind) is None)]


@pytest.mark.parametrize("kernel", relu_kernels())
def test_a_relu_query_that_meets_no_feature_reads_zero_with_gradients_that_are_finite(kernel):
    inputs = [x.requires_grad_() for x in random_qkv(40, dtype=torch.float32)]
    q, k, v = inputs
    q = torch.cat([-q[:, :, :20].abs(), q[:, :, 20:]], dim=2)
    y = ReluAttention(kernel=kernel)(q, k, v)
    assert (y[:, :, :20] == 0).all() and (y[:, :, 20:] != 0).any()
    assert all(g.isfinite().all() for g in gradients(y, inputs))


# The delta rule


def delta_attention(seed=0, name="delta", choice=None):
    attention = for_model(name, choice, n_heads=H, head_dim=D, max_len=64).double()
    generator = torch.Generator().manual_seed(seed)
    for parameter in attention.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return attention


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("choice, nu", [(None, 1), ("torch", 1), ("nu2", 2), ("nu3", 3)])
def test_delta_attention_writes_normalised_features_with_strengths_of_the_keys(choice, nu, causal):
    q, k, v = random_qkv(12)
    attention = delta_attention(choice=choice)
    y, expected = attention(q, k, v, causal=causal), torch.empty_like(v)
    w, b = (x.detach() for x in (attention.to_beta, attention.beta_bias))
    phi_q, phi_k = (x / (x.sum(-1, keepdim=True) + 1e-6) for x in (dpfp(q, nu), dpfp(k, nu)))
    for i, h in np.ndindex(B, H):
        memory = torch.zeros(M, 2 * D * nu, dtype=torch.float64)
        for n in range(q.shape[2]):
            beta, key = torch.sigmoid(w[h] @ k[i, h, n] + b[h]), phi_k[i, h, n]
            memory = memory @ (torch.eye(2 * D * nu) - beta * torch.outer(key, key))
            memory = memory + beta * torch.outer(v[i, h, n], key)
            expected[i, h, n] = memory @ phi_q[i, h, n]
        if not causal:
            expected[i, h] = phi_q[i, h] @ memory.T
    torch.testing.assert_close(y, expected)


def test_the_strengths_of_delta_attention_learn():
    inputs, attention = random_qkv(12), delta_attention()
    grads = gradients(attention(*inputs), list(attention.parameters()))
    assert all(g.abs().min() > 0 for g in grads)


# The fast weight memory


def fwm_reads(q, k, v, attention, causal):
    """The written recurrence, a write at a time, in numpy."""
    phi = FEATURE_MAPS[attention.options.features]
    w, b = (x.detach().numpy() for x in (attention.to_beta, attention.beta_bias))
    phi_q, phi_k, y = phi(q).numpy(), phi(k).numpy(), np.empty(v.shape)
    for i, h in np.ndindex(B, H):
        memory, reads = np.zeros((M, phi_k.shape[-1])), []
        for n in range(q.shape[2]):
            beta = 1 / (1 + np.exp(-(w[h] @ k[i, h, n].numpy() + b[h])))
            error = v[i, h, n].numpy() - memory @ phi_k[i, h, n]
            memory = memory + beta * np.outer(error, phi_k[i, h, n])
            memory = memory / max(1, np.sqrt((memory**2).sum()))
            reads.append(memory @ phi_q[i, h, n])
        reads = np.array(reads) if causal else phi_q[i, h] @ memory.T
        centred = reads - reads.mean(-1, keepdims=True)
        y[i, h] = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    return torch.from_numpy(y)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("scale", [0.05, 1.0, 5.0])
@pytest.mark.parametrize("choice", FWMAttention.choices())
def test_fwm_attention_is_its_written_recurrence(choice, scale, causal):
    q, k, v = random_qkv(30, scale=scale)
    attention = delta_attention(name="fwm", choice=choice)
    y = attention(q, k, v, causal=causal)
    torch.testing.assert_close(y, fwm_reads(q, k, v, attention, causal), rtol=1e-8, atol=1e-10)


def test_after_a_small_first_write_fwm_reads_what_the_kernel_of_memories_reads():
    """The kernel, as the published code of the retrieval task, does not divide after the first."""
    q, k, v = random_qkv(25)
    v[:, :, 0] *= 1e-3
    attention = delta_attention(name="fwm", choice="tanh")
    beta = attention._beta(k, "bhnd,hd->bhn").detach()
    y = fwm.retrieve(*(x.flatten(0, 1) for x in (q.tanh(), k.tanh(), v, beta)))
    y = torch.nn.functional.layer_norm(y, y.shape[-1:], eps=1e-5).unflatten(0, (B, H))
    torch.testing.assert_close(attention(q, k, v, causal=False), y, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("choice", FWMAttention.choices())
def test_gradients_of_fwm_are_those_of_finite_differences(choice):
    generator = torch.Generator().manual_seed(0)
    attention = for_model("fwm", choice, n_heads=1, head_dim=3, max_len=8)
    parameters = [p for _, p in attention.double().named_parameters()]
    q, k, v = (
        torch.randn(1, 1, 5, d, generator=generator, dtype=torch.float64, requires_grad=True)
        for d in (3, 3, 4)
    )
    assert torch.autograd.gradcheck(lambda *x: attention(*x[:3]), (q, k, v, *parameters))


@pytest.mark.parametrize("scale", [0.0, 1e-4, 1e4])
def test_fwm_stays_finite_where_keys_are_nothing_or_far_too_long(scale):
    inputs = [x.requires_grad_() for x in random_qkv(50, scale=scale, dtype=torch.float32)]
    attention = ATTENTION["fwm"].for_model(n_heads=H, head_dim=D, max_len=64)
    y = attention(*inputs)
    assert y.isfinite().all() and all(g.isfinite().all() for g in gradients(y, inputs))


# LSH


def shared_softmax(q, v):
    """Causal softmax attention of q to the unit vectors of q; itself only where it is alone."""
    unit = q / q.norm(dim=-1, keepdim=True)
    y = torch.empty_like(v)
    for n in range(q.shape[2]):
        first = max(n, 1)
        scores = unit[:, :, :first] @ q[:, :, n, :, None] / math.sqrt(q.shape[-1])
        y[:, :, n] = (scores.softmax(2) * v[:, :, :first]).sum(2)
    return y


@pytest.mark.parametrize("n", [1, 2, 31, 64])
@pytest.mark.parametrize("rounds", [1, 4, 8])
def test_lsh_is_softmax_when_one_bucket_holds_all(rounds, n):
    q, k, v = (x.requires_grad_() for x in random_qkv(n))
    options = LSHAttention.Options(rounds=rounds)
    attention = LSHAttention(head_dim=D, options=options, n_buckets=1).double()
    y, expected = attention(q, k, v), shared_softmax(q, v)
    torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-11)
    dq, _, dv = gradients(y, (q, k, v))
    expected_dq, expected_dv = gradients(expected, (q, v))
    torch.testing.assert_close(dv, expected_dv, rtol=1e-9, atol=1e-11)
    if n > 1:
        torch.testing.assert_close(dq, expected_dq, rtol=1e-9, atol=1e-11)


def test_one_bucket_of_several_chunks_sees_this_chunk_and_the_one_before():
    n, c = 20, 4
    q, k, v = random_qkv(n)
    y = LSHAttention(head_dim=D, chunk_len=c, n_buckets=1).double()(q, k, v)
    for i in range(2 * c, n):
        first = (i // c - 1) * c
        near = shared_softmax(q[:, :, first : i + 1], v[:, :, first : i + 1])[:, :, -1]
        torch.testing.assert_close(y[:, :, i], near)


@pytest.mark.parametrize("n_buckets", [2, 6])
@pytest.mark.parametrize("rounds", [1, 4])
def test_a_round_is_softmax_within_the_bucket_and_rounds_are_weighted_by_normalisers(
    rounds, n_buckets
):
    n, c = 50, 4
    q, k, v = random_qkv(n)
    options = LSHAttention.Options(rounds=rounds)
    sizes = {"chunk_len": c, "n_buckets": n_buckets}
    attention = LSHAttention(head_dim=D, options=options, **sizes).double()
    y, expected = attention(q, k, v), torch.zeros_like(v)
    unit = q / q.norm(dim=-1, keepdim=True)
    found = [buckets(q, r, n_buckets) for r in attention.rotations]
    for b, h, i in np.ndindex(B, H, n):
        numerator, denominator = torch.zeros(M, dtype=torch.float64), 0.0
        alone = True
        for bucket in (x[b, h] for x in found):
            before = [j for j in range(i) if bucket[j] == bucket[i]]
            chunk = len(before) // c  # of position i in its bucket
            seen = [j for rank, j in enumerate(before) if rank // c >= chunk - 1]
            for j in seen:
                weight = torch.exp(unit[b, h, j] @ q[b, h, i] / math.sqrt(D))
                numerator, denominator = numerator + weight * v[b, h, j], denominator + weight
            alone &= not seen
        expected[b, h, i] = v[b, h, i] if alone else numerator / denominator
    torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-11)


def test_rotations_and_buckets_stay_as_they_were_in_a_checkpoint():
    short = ATTENTION["lsh"].for_model(n_heads=H, head_dim=D, max_len=64)
    long = ATTENTION["lsh"].for_model(n_heads=H, head_dim=D, max_len=4096)
    assert (short.n_buckets, long.n_buckets) == (2, 64)
    short.load_state_dict(long.state_dict())
    assert short.n_buckets == 64 and torch.equal(short.rotations, long.rotations)


def original_rounds(q, v, rotations, n_buckets, c, padding=()):
    """fast-transformers' Reformer: one sequence, sorted by bucket, in chunks that attend to
    themselves and the chunk before; a position to none later; the mean of the rounds."""
    unit, y = q / q.norm(dim=-1, keepdim=True), torch.zeros_like(v)
    kept = [i for i in range(q.shape[2]) if i not in padding]
    for rotation, b, h in product(rotations, range(B), range(H)):
        bucket = buckets(q, rotation, n_buckets)[b, h].tolist()
        order = sorted(kept, key=lambda i: (bucket[i], i))
        for place, i in enumerate(order):
            near = order[max(0, place // c - 1) * c : (place // c + 1) * c]
            seen = [j for j in near if j <= i]
            weights = (unit[b, h, seen] @ q[b, h, i] / math.sqrt(D)).softmax(0)
            y[b, h, i] += weights @ v[b, h, seen] / len(rotations)
    return y


def original(rounds, **sizes):
    options = LSHAttention.Options(rounds=rounds, original=True)
    sizes = {"chunk_len": 4, "n_buckets": 6} | sizes
    return LSHAttention(head_dim=D, options=options, **sizes).double()


@pytest.mark.parametrize("n", [3, 4, 30])
@pytest.mark.parametrize("rounds", [1, 4])
def test_the_original_cuts_chunks_from_one_sorted_sequence_and_averages_rounds(rounds, n):
    q, k, v = random_qkv(n)
    attention = original(rounds)
    expected = original_rounds(q, v, attention.rotations, 6, 4)
    torch.testing.assert_close(attention(q, k, v), expected, rtol=1e-9, atol=1e-11)
    padding = torch.zeros(B, n, dtype=torch.bool)
    padding[:, :2] = True
    q[:, :, :2] = v[:, :, :2] = math.nan
    y = attention(q, k, v, key_padding_mask=padding)
    expected = original_rounds(q.nan_to_num(1), v.nan_to_num(1), attention.rotations, 6, 4, (0, 1))
    torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-11)


def test_the_original_has_64_buckets_at_any_length_and_no_recurrent_form():
    for max_len in (16, 128, 4096):
        attention = for_model("lsh", "original 4 rounds", n_heads=H, head_dim=D, max_len=max_len)
        assert attention.n_buckets == 64 and len(attention.rotations) == 4
    with pytest.raises(ValueError, match="depends on later positions: use original=False"):
        attention.init_state(B, H, D)


def test_what_the_original_gives_at_a_position_changes_with_later_ones():
    """And so its causal form is not that of a decoder, which has not seen them."""
    q, k, v = random_qkv(60)
    whole = original(4)(q, k, v)[:, :, :40]
    alone = original(4)(*(x[:, :, :40] for x in (q, k, v)))
    assert ((whole - alone).abs().amax(-1) > 1e-3).double().mean() > 0.1
    ours = LSHAttention(head_dim=D, chunk_len=4, n_buckets=6).double()
    torch.testing.assert_close(ours(q, k, v)[:, :, :40], ours(*(x[:, :, :40] for x in (q, k, v))))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"chunk_len": 0}, "chunk_len 0: use at least 1"),
        ({"n_buckets": 3}, "n_buckets 3: use 1, or an even number to 64"),
        ({"n_buckets": 66}, "n_buckets 66"),
        ({"options": DPFPAttention.Options()}, "are no options of LSH attention"),
        ({"kernel": "2 rounds"}, "LSH attention has no kernel '2 rounds': use None"),
    ],
)
def test_sizes_that_lsh_has_not_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LSHAttention(head_dim=D, **options)


def test_performer_redraws_its_directions_in_training_if_asked_to():
    attention = PerformerAttention(head_dim=8, redraw_every=2)
    inputs = torch.randn(3, 1, 2, 5, 8, generator=torch.Generator().manual_seed(0))
    drawn = [attention.directions.clone()]
    for _ in range(5):
        attention(*inputs)
        drawn.append(attention.directions.clone())
    same = [torch.equal(a, b) for a, b in zip(drawn[:-1], drawn[1:], strict=True)]
    assert same == [True, True, False, True, False]
    resumed = PerformerAttention(head_dim=8, redraw_every=2)
    resumed.load_state_dict(attention.state_dict())
    for one in (attention, resumed):
        one(*inputs), one(*inputs)
    assert torch.equal(resumed.directions, attention.directions)
    attention.eval()
    attention(*inputs), attention(*inputs)
    assert torch.equal(resumed.directions, attention.directions)
    with pytest.raises(ValueError, match="use at least 1"):
        PerformerAttention(head_dim=8, redraw_every=0)
