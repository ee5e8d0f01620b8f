"""The visible memory: its recurrences equal closed forms, and a memory of R holds R keys."""

import pytest
import torch

from replib.attention.feature_maps import dpfp, elu1
from replib.fast_weights import (
    MEMORIES,
    FillConfig,
    draw,
    effective_rank,
    eigenvalues,
    key_features,
    losses,
    memory,
    rank,
    reads,
    similarity,
    states,
)
from replib.kernels import delta, fwm
from replib.retrieval import UPDATE_RULES

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


def in_order(writes, rule):
    """The features of each write (T, R)."""
    return writes.written(rule)[writes.keys]


@pytest.mark.parametrize("attention, values, scale", SETTINGS)
@pytest.mark.parametrize("n_writes", [0, 1, 6, 10])
def test_the_sum_is_one_product_of_all_values_and_keys(attention, values, scale, n_writes):
    writes = draw(config(attention, values=values, scale=scale))
    w = memory(writes, "sum", n_writes)
    keys, given = in_order(writes, "sum")[:n_writes], writes.values[:n_writes]
    torch.testing.assert_close(w, given.mT @ keys)
    read = reads(writes, "sum", w, n_writes)
    weights = writes.features @ keys.mT
    if attention != "tanh" and n_writes:
        # Features of relu and dpfp may have nothing in common: then nothing is read.
        weights = (weights / weights.sum(-1, keepdim=True)).nan_to_num()
    torch.testing.assert_close(read, weights @ given)


@pytest.mark.parametrize("attention, values, scale", SETTINGS)
@pytest.mark.parametrize("n_writes", [0, 1, 6, 10])
def test_the_delta_rule_is_a_product_of_transition_matrices(attention, values, scale, n_writes):
    """W_n = Σ_j β v_j f_jᵀ Π_{i>j} (I - β f_i f_iᵀ), and what the training kernel reads."""
    writes = draw(config(attention, values=values, scale=scale))
    keys, beta = in_order(writes, "delta")[:n_writes], SMALL["strength"]
    expected = torch.zeros(writes.values.shape[1], keys.shape[1], dtype=torch.float64)
    for j in range(n_writes):
        kept = beta * torch.outer(writes.values[j], keys[j])
        for f in keys[j + 1 :]:
            kept = kept @ (torch.eye(len(f), dtype=torch.float64) - beta * torch.outer(f, f))
        expected += kept
    w = memory(writes, "delta", n_writes)
    torch.testing.assert_close(w, expected)
    if n_writes:
        strengths = torch.full((1, 1, n_writes), beta, dtype=torch.float64)
        queries = writes.written("delta")[None, None]
        weights = delta.read_weights(queries, keys[None, None], strengths)[0, 0]
        expected = weights @ writes.values[:n_writes]
        torch.testing.assert_close(reads(writes, "delta", w, n_writes), expected)


@pytest.mark.parametrize("attention, values, scale", SETTINGS)
def test_the_rule_fwm_reads_what_its_kernel_reads_without_a_memory(attention, values, scale):
    writes = draw(config(attention, values=values, scale=scale))
    keys, n = in_order(writes, "fwm"), writes.config.n_writes
    strengths = torch.full((1, n), SMALL["strength"], dtype=torch.float64)
    queries = writes.written("fwm")[None]
    expected = fwm.retrieve(queries, keys[None], writes.values[None], strengths)[0]
    w = memory(writes, "fwm", n)
    torch.testing.assert_close(reads(writes, "fwm", w, n), expected)
    assert w.norm() <= 1 + 1e-12


def test_a_loss_is_of_the_value_that_a_key_was_given_last():
    writes = draw(config(strength=1.0))
    for rule in UPDATE_RULES:
        found = losses(writes, rule)
        assert len(found) == 10
        for n_writes in (1, 7, 8, 10):
            read = reads(writes, rule, memory(writes, rule, n_writes), n_writes)
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
    by_rule = {rule: reads(writes, rule, memory(writes, rule, 5), 5)[0] for rule in UPDATE_RULES}
    torch.testing.assert_close(by_rule["sum"], (old + new) / 2)
    torch.testing.assert_close(by_rule["delta"], new)
    assert losses(writes, "delta")[-1] < 1e-12
    # |new - (old + new) / 2|² / 2 of one key of four
    assert losses(writes, "sum")[-1] == pytest.approx(0.25 / 4)


@pytest.mark.parametrize("attention", MEMORIES)
def test_with_delta_at_full_strength_the_last_written_key_reads_its_value(attention):
    writes = draw(config(attention, head_dim=12, strength=1.0))
    for n_writes, w in enumerate(states(writes, "delta")):
        if n_writes:
            read = reads(writes, "delta", w, n_writes)[writes.keys[n_writes - 1]]
            torch.testing.assert_close(read, writes.values[n_writes - 1])


@pytest.mark.parametrize(
    "attention, implementation, n_features",
    [
        ("linear", None, 6),
        ("relu", None, 6),
        ("tanh", None, 6),
        ("dpfp", "nu1", 12),
        ("dpfp", "nu3", 36),
        ("performer", "64", 128),
    ],
)
def test_no_more_than_r_keys_are_independent(attention, implementation, n_features):
    fill = FillConfig(head_dim=6, attention=attention, implementation=implementation)
    assert fill.n_features == n_features
    for n in (1, n_features // 2, n_features + 9):
        x = key_features(fill, n)
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
    fill = config("dpfp", implementation="nu2")
    raw = config("tanh").seed, torch.atanh(key_features(config("tanh"), 5))
    torch.testing.assert_close(key_features(fill, 5), dpfp(raw[1], 2))
    torch.testing.assert_close(key_features(config("linear"), 5), elu1(raw[1]))
    torch.testing.assert_close(key_features(fill, 9)[:5], key_features(fill, 5))
    assert not torch.allclose(key_features(config(seed=1), 5), key_features(config(), 5))


def test_random_features_come_near_the_exponential_of_products():
    fill = FillConfig(head_dim=4, attention="performer", implementation="512")
    x = torch.atanh(key_features(FillConfig(head_dim=4, attention="tanh"), 6)) / 4**0.25
    f = key_features(fill, 6)
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
        ({"attention": "dpfp", "implementation": "nu9"}, "nu1"),
    ],
)
def test_a_filling_out_of_range_is_refused_with_the_remedy(changes, remedy):
    with pytest.raises(ValueError, match=remedy):
        FillConfig(**SMALL | changes)


def test_an_unknown_rule_is_refused():
    with pytest.raises(ValueError, match="use sum, delta, fwm"):
        memory(draw(config()), "product", 1)
