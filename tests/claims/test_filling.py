"""The visible memory: its recurrences equal closed forms, and a memory of R holds R keys."""

import pytest
import torch

from replib.attention.dpfp import DPFPAttention
from replib.attention.feature_maps import dpfp, elu1
from replib.attention.performer import PerformerAttention
from replib.claims.capacity.filling import (
    MEMORIES,
    FillConfig,
    draw,
    effective_rank,
    eigenvalues,
    fill,
    key_features,
    rank,
    similarity,
)
from replib.fast_weights import UPDATE_RULES
from replib.kernels.delta import torch as delta
from replib.kernels.retrieval import fwm

SMALL = {"n_keys": 7, "head_dim": 4, "n_again": 3, "strength": 0.7}
SETTINGS = [
    (attention, values, scale)
    for attention in MEMORIES
    for values in ("one-hot", "random")
    for scale in ("length 1", "sum 1", "none")
    if (attention, scale) != ("tanh", "sum 1")
]


def config(attention="dpfp", **changes):
    return FillConfig(attention=attention, **SMALL | changes)


def loop(writes, rule):
    """W after each write, by the equations as they stand."""
    f, w, found = writes.written(rule), 0.0, []
    beta = writes.config.strength
    for i, (key, value) in enumerate(zip(writes.keys.tolist(), writes.values, strict=True)):
        if rule == "sum":
            w = w + torch.outer(value, f[key])
        else:
            old = w @ f[key] if i else torch.zeros_like(value)
            w = w + beta * torch.outer(value - old, f[key])
        if rule == "fwm" and i:
            w = w / max(1.0, torch.linalg.matrix_norm(w).item())
        found.append(w)
    return found


@pytest.mark.parametrize("rule", UPDATE_RULES)
@pytest.mark.parametrize("attention, values, scale", SETTINGS)
def test_memory_and_reads_are_those_of_the_plain_recurrence(attention, values, scale, rule):
    writes = draw(config(attention, values=values, scale=scale))
    filled, f = fill(writes, rule), writes.written(rule)
    assert not filled.memory(0).any() and not filled.reads[0].any()
    for n_writes, w in enumerate(loop(writes, rule), start=1):
        torch.testing.assert_close(filled.memory(n_writes), w)
        expected = f @ w.mT
        if rule == "sum" and attention != "tanh":
            z = f[writes.keys[:n_writes]].sum(0)
            # Features of relu and dpfp may have nothing in common: then nothing is read.
            expected = (expected / (f @ z)[:, None]).nan_to_num()
        torch.testing.assert_close(filled.reads[n_writes], expected)


@pytest.mark.parametrize("attention, values, scale", SETTINGS)
def test_the_delta_rule_is_a_product_of_transition_matrices(attention, values, scale):
    """W = Σ_j β v_j f_jᵀ Π_{i>j} (I - β f_i f_iᵀ), and what the training kernel reads."""
    writes = draw(config(attention, values=values, scale=scale))
    keys, beta = writes.written("delta")[writes.keys], SMALL["strength"]
    expected = torch.zeros(writes.values.shape[1], keys.shape[1], dtype=torch.float64)
    for j in range(len(keys)):
        kept = beta * torch.outer(writes.values[j], keys[j])
        for f in keys[j + 1 :]:
            kept = kept @ (torch.eye(len(f), dtype=torch.float64) - beta * torch.outer(f, f))
        expected += kept
    filled = fill(writes, "delta")
    torch.testing.assert_close(filled.memory(10), expected)
    strengths = torch.full((1, 1, 10), beta, dtype=torch.float64)
    queries = writes.written("delta")[None, None]
    weights = delta.read_weights(queries, keys[None, None], strengths)[0, 0]
    torch.testing.assert_close(filled.reads[10], weights @ writes.values)


@pytest.mark.parametrize("attention, values, scale", SETTINGS)
def test_the_rule_fwm_reads_what_its_kernel_reads_without_a_memory(attention, values, scale):
    writes = draw(config(attention, values=values, scale=scale))
    keys = writes.written("fwm")[writes.keys]
    strengths = torch.full((1, 10), SMALL["strength"], dtype=torch.float64)
    queries = writes.written("fwm")[None]
    expected = fwm.retrieve(queries, keys[None], writes.values[None], strengths)[0]
    filled = fill(writes, "fwm")
    torch.testing.assert_close(filled.reads[10], expected)
    assert filled.memory(10).norm() <= 1 + 1e-12


def test_a_loss_is_of_the_value_that_a_key_was_given_last():
    writes = draw(config(strength=1.0))
    for rule in UPDATE_RULES:
        filled = fill(writes, rule)
        found = filled.losses()
        assert len(found) == 10
        for n_writes in (1, 7, 8, 10):
            read = filled.reads[n_writes]
            last = [
                max(i for i in range(n_writes) if writes.keys[i] == k) if k < n_writes else None
                for k in range(7)
            ]
            errors = [
                ((read[k] - writes.values[i]) ** 2).sum().item() / 2
                for k, i in enumerate(last)
                if i is not None
            ]
            assert found[n_writes - 1] == pytest.approx(sum(errors) / len(errors))


def test_a_key_that_is_given_a_new_value_reads_both_by_sum_and_the_new_one_by_delta():
    """Exactly so where keys do not overlap: orthogonal features, D of them."""
    writes = draw(FillConfig(n_keys=4, head_dim=8, attention="relu", n_again=1))
    writes.features.copy_(torch.eye(4, 8, dtype=torch.float64))
    old, new = writes.values[0], writes.values[4]
    by_rule = {rule: fill(writes, rule).reads[5, 0] for rule in UPDATE_RULES}
    torch.testing.assert_close(by_rule["sum"], (old + new) / 2)
    torch.testing.assert_close(by_rule["delta"], new)
    assert fill(writes, "delta").losses()[-1] < 1e-12
    # |new - (old + new) / 2|² / 2 of one key of four
    assert fill(writes, "sum").losses()[-1] == pytest.approx(0.25 / 4)


@pytest.mark.parametrize("attention", MEMORIES)
def test_with_delta_at_full_strength_the_last_written_key_reads_its_value(attention):
    writes = draw(config(attention, head_dim=12, strength=1.0))
    reads = fill(writes, "delta").reads[1:]
    for read, key, value in zip(reads, writes.keys, writes.values, strict=True):
        torch.testing.assert_close(read[key], value)


@pytest.mark.parametrize(
    "attention, options, n_features",
    [
        ("linear", None, 6),
        ("relu", None, 6),
        ("tanh", None, 6),
        ("dpfp", DPFPAttention.Options(nu=1), 12),
        ("dpfp", DPFPAttention.Options(nu=3), 36),
        ("performer", PerformerAttention.Options(n_directions=64), 128),
    ],
)
def test_no_more_than_r_keys_are_independent(attention, options, n_features):
    sized = FillConfig(head_dim=6, attention=attention, options=options)
    assert sized.n_features == n_features
    for n in (1, n_features // 2, n_features + 9):
        x = key_features(sized, n)
        values = eigenvalues(x)
        assert 1 <= rank(values) <= min(n, n_features)
        assert 1 - 1e-9 <= effective_rank(values) <= rank(values) + 1e-6
        assert values.sum().item() == pytest.approx(n)  # the trace: all rows have length 1
        full = torch.linalg.eigvalsh(similarity(x)).flip(0)[: len(values)]
        torch.testing.assert_close(values, full.clamp(min=0), atol=1e-9, rtol=0)


def test_the_effective_rank_counts_equal_eigenvalues():
    assert effective_rank(torch.tensor([2.0, 2.0, 2.0, 0.0])) == pytest.approx(3)
    assert effective_rank(torch.tensor([1.0, 0.0])) == pytest.approx(1)
    assert rank(torch.tensor([1.0, 1e-3, 1e-12])) == 2


def test_features_are_those_of_the_mechanisms_and_the_first_keys_stay():
    with_two = config("dpfp", options=DPFPAttention.Options(nu=2))
    x = torch.atanh(key_features(config("tanh"), 5))
    torch.testing.assert_close(key_features(with_two, 5), dpfp(x, 2))
    torch.testing.assert_close(key_features(config("linear"), 5), elu1(x))
    assert torch.equal(key_features(with_two, 9)[:5], key_features(with_two, 5))
    assert not torch.allclose(key_features(config(seed=1), 5), key_features(config(), 5))


def test_random_features_come_near_the_exponential_of_products():
    many = PerformerAttention.Options(n_directions=512)
    sized = FillConfig(head_dim=4, attention="performer", options=many)
    x = torch.atanh(key_features(FillConfig(head_dim=4, attention="tanh"), 6)) / 4**0.25
    f = key_features(sized, 6)
    near = (x[:, None] + x).norm(dim=-1) < 2  # beyond, the error grows as the exponential
    expected, found = (x @ x.mT).exp()[near], (f @ f.mT)[near]
    assert len(expected) > 5
    torch.testing.assert_close(found, expected, rtol=0.3, atol=0.1)


@pytest.mark.parametrize(
    "changes, remedy",
    [
        ({"attention": "softmax"}, "use linear"),
        ({"n_keys": 0}, "use 1 to 1024"),
        ({"n_again": 8}, "use 0 to that many"),
        ({"strength": 0.0}, "use above 0"),
        ({"values": "two-hot"}, "use one-hot, random"),
        ({"scale": "sum 1", "attention": "tanh"}, "length 1"),
        ({"attention": "relu", "options": DPFPAttention.Options()}, "no options: use None"),
    ],
)
def test_a_filling_out_of_range_is_refused_with_the_remedy(changes, remedy):
    with pytest.raises(ValueError, match=remedy):
        FillConfig(**SMALL | changes)


def test_an_unknown_rule_is_refused():
    with pytest.raises(ValueError, match="use sum, delta, fwm"):
        fill(draw(config()), "product")
