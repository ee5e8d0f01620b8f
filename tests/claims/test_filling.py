"""The visible memory: its recurrence equals closed forms and the kernels of training."""

from dataclasses import replace

import pytest
import torch

from replib.claims.capacity.filling import FillConfig, fill, key_features
from replib.claims.capacity.grid import dpfp, favor
from replib.fast_weights import UPDATE_RULES, MemoryConfig
from replib.kernels.delta import torch as delta
from replib.kernels.retrieval import fwm

MEMORIES = [
    replace(memory, head_dim=4)
    for memory in (MemoryConfig(), MemoryConfig(attention="relu"), dpfp(2), favor(64))
]
every_memory = pytest.mark.parametrize("memory", MEMORIES, ids=lambda m: m.attention)
SMALL = {"n_keys": 7, "n_again": 3, "strength": 0.7}


def filled(memory, rule, **changes):
    """A filling, its keys' features as they are written (T, R), and its values (T, M)."""
    config = FillConfig(memory=memory, **SMALL | changes)
    f = key_features(config, config.n_keys)
    f = f if rule == "sum" else f / f.norm(dim=1, keepdim=True).clamp(min=1e-30)
    return fill(config, rule), f, torch.eye(config.n_writes, dtype=torch.float64)


@every_memory
def test_a_sum_is_linear_attention_of_keys_to_all_writes(memory):
    filling, f, values = filled(memory, "sum")
    written = f[filling.config.written]
    torch.testing.assert_close(filling.w[-1], values.mT @ written)
    for n in (1, 6, 10):
        weights = f @ written[:n].mT
        expected = (weights / weights.sum(1, keepdim=True)).nan_to_num() @ values[:n]
        torch.testing.assert_close(filling.reads[n], expected)
    assert not filling.reads[0].any() and not filling.w[0].any()


@every_memory
def test_the_delta_rule_is_a_product_of_transition_matrices(memory):
    """W = Σ_j β v_j f_jᵀ Π_{i>j} (I - β f_i f_iᵀ), and what the training kernel reads."""
    filling, f, values = filled(memory, "delta")
    keys, beta = f[filling.config.written], SMALL["strength"]
    expected = torch.zeros_like(filling.w[-1])
    for j in range(len(keys)):
        kept = beta * torch.outer(values[j], keys[j])
        for k in keys[j + 1 :]:
            kept = kept @ (torch.eye(len(k), dtype=torch.float64) - beta * torch.outer(k, k))
        expected += kept
    torch.testing.assert_close(filling.w[-1], expected)
    strengths = torch.full((1, 1, 10), beta, dtype=torch.float64)
    weights = delta.read_weights(f[None, None], keys[None, None], strengths)[0, 0]
    torch.testing.assert_close(filling.reads[-1], weights @ values)


@every_memory
def test_the_rule_fwm_reads_what_its_kernel_reads_without_a_memory(memory):
    filling, f, values = filled(memory, "fwm")
    strengths = torch.full((1, 10), SMALL["strength"], dtype=torch.float64)
    expected = fwm.retrieve(f[None], f[filling.config.written][None], values[None], strengths)[0]
    torch.testing.assert_close(filling.reads[-1], expected)
    assert filling.w[-1].norm() <= 1 + 1e-12


@pytest.mark.parametrize("rule", UPDATE_RULES)
def test_a_loss_is_of_the_value_that_a_key_was_given_last(rule):
    filling, _, values = filled(MEMORIES[0], rule)
    for n_writes in (1, 7, 8, 10):
        last = {key: i for i, key in enumerate(filling.config.written[:n_writes].tolist())}
        reads = filling.reads[n_writes]
        errors = [(reads[key] - values[i]).square().sum().item() / 2 for key, i in last.items()]
        assert filling.losses[n_writes - 1].item() == pytest.approx(sum(errors) / len(errors))


@every_memory
def test_with_delta_at_full_strength_the_last_written_key_reads_its_value(memory):
    filling, _, values = filled(replace(memory, head_dim=12), "delta", strength=1.0)
    for read, key, value in zip(filling.reads[1:], filling.config.written, values, strict=True):
        torch.testing.assert_close(read[key], value)


def test_keys_that_are_given_a_new_value_read_both_by_sum_and_the_new_one_by_delta():
    wide = {"n_keys": 2, "n_again": 1, "strength": 1.0}
    shares = {r: filled(replace(dpfp(1), head_dim=64), r, **wide)[0].shares() for r in UPDATE_RULES}
    assert shares["sum"]["new value"] == pytest.approx(shares["sum"]["old value"])
    assert 0.2 < shares["sum"]["old value"] <= 0.5
    assert shares["delta"] == pytest.approx({"new value": 1, "old value": 0, "crosstalk": 0})


@every_memory
def test_the_first_keys_stay_however_many_there_are(memory):
    config = FillConfig(memory=memory)
    few = key_features(config, 5)
    torch.testing.assert_close(key_features(config, 9)[:5], few)
    assert few.shape == (5, memory.n_features) and (few >= 0).all()
    assert not torch.allclose(key_features(replace(config, seed=1), 5), few)


@pytest.mark.parametrize(
    "changes, remedy",
    [
        ({"memory": MemoryConfig(attention="softmax")}, "use linear or dpfp"),
        ({"memory": MemoryConfig(attention="tanh")}, "use linear or dpfp"),
        ({"n_keys": 0}, "use 1 to 1024"),
        ({"n_again": 8}, "use 0 to that many"),
        ({"strength": 0.0}, "use above 0"),
    ],
)
def test_a_filling_out_of_range_is_refused_with_the_remedy(changes, remedy):
    with pytest.raises(ValueError, match=remedy):
        FillConfig(**SMALL | changes)


def test_an_unknown_rule_is_refused():
    with pytest.raises(ValueError, match="use sum, delta, fwm"):
        fill(FillConfig(), "product")
