"""What a mechanism computes (its options) and how (its kernel) are two fields, and never text."""

from dataclasses import fields, replace

import pytest
from choices import CAUSAL

from replib.attention import ATTENTION
from replib.attention.dpfp import DPFPAttention
from replib.attention.lsh import LSHAttention
from replib.fast_weights import MemoryConfig
from replib.lab.configs import config_from
from replib.lab.run import identity
from replib.lab.store import plain
from replib.lab.timing import CostConfig
from replib.models import TransformerConfig

CHOICES = [(name, *choice) for name, cls in ATTENTION.items() for choice in cls.choices().values()]


@pytest.mark.parametrize("name", ATTENTION)
def test_options_have_defaults_and_labels_that_tell_them_apart(name):
    mechanism = ATTENTION[name]
    assert mechanism.Options() in mechanism.offered or not fields(mechanism.Options)
    labels = [options.label for options in mechanism.offered]
    assert len(set(labels)) == len(labels) and not set(labels) & set(mechanism.kernels)
    assert all(type(options) is mechanism.Options for options in mechanism.offered)


@pytest.mark.parametrize(("name", "options", "kernel"), CHOICES)
def test_a_config_is_what_its_row_says(name, options, kernel):
    for config in (
        CostConfig(attention=name, options=options, kernel=kernel, causal=name in CAUSAL),
        TransformerConfig(attention=name, options=options, kernel=kernel),
    ):
        assert config_from(type(config), plain(config)) == config
    label = options.label if options else kernel
    assert config.variant == (name, label)


def test_both_are_named_where_both_are_asked_for():
    config = CostConfig(attention="delta", options=DPFPAttention.Options(nu=2), kernel="torch")
    assert config.variant == ("delta", "nu2 torch")


def test_a_mechanism_is_built_with_its_default_options():
    attention = ATTENTION["lsh"].for_model(n_heads=1, head_dim=4, max_len=64)
    assert attention.options == LSHAttention.Options(rounds=1) and attention.kernel is None
    chosen = LSHAttention.Options(rounds=3, original=True)
    attention = ATTENTION["lsh"].for_model(n_heads=1, head_dim=4, max_len=64, options=chosen)
    assert attention.options.label == "original 3 rounds" and len(attention.rotations) == 3


def test_another_choice_is_another_run_and_the_default_left_out():
    default = CostConfig(attention="lsh")
    found = {
        identity(replace(default, options=options), cost=True)
        for options in (None, *LSHAttention.offered)
    }
    assert len(found) == 1 + len(LSHAttention.offered)


@pytest.mark.parametrize("config", [CostConfig, TransformerConfig])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"options": LSHAttention.Options()}, "are no options of linear attention"),
        ({"kernel": "fused"}, "has no kernel 'fused': use torch, cpu, cuda, plain"),
        ({"attention": "lsh", "kernel": "torch"}, "LSH attention has no kernel 'torch': use None"),
    ],
)
def test_options_and_kernels_of_others_are_refused(config, changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)


@pytest.mark.parametrize(
    ("plain_options", "message"),
    [
        ({"rounds": "4"}, "'rounds' is '4'"),
        ({"rounds": 0}, "rounds 0: use 1 to 64"),
        ({"nu": 2}, "'nu' is not known"),
        (4, "the config of a Options is 4"),
    ],
)
def test_rows_whose_options_cannot_be_are_refused(plain_options, message):
    with pytest.raises(ValueError, match=message):
        config_from(CostConfig, {"attention": "lsh", "options": plain_options})


def test_a_memory_takes_the_options_of_its_features():
    memory = MemoryConfig(attention="dpfp", options=DPFPAttention.Options(nu=3))
    assert memory.size == 3 and memory.variant == ("dpfp", "nu3")
    assert MemoryConfig(attention="performer").size == 64
    assert "kernel" not in plain(memory)
    assert config_from(MemoryConfig, plain(memory)) == memory
