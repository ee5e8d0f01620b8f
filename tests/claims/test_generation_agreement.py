"""Generating in every way of the same weights, and by every kernel, is the same function."""

import math

import pytest
import torch

from replib import kernels
from replib.claims.generation import agreement
from replib.claims.generation import page as parts
from replib.lab import kept_models
from replib.lab.runs.generation import GenerationConfig, build_model

SIZES = {"n_layers": 2, "n_heads": 2, "head_dim": 8}
TOKENS = torch.randint(256, (2, 33), generator=torch.Generator().manual_seed(1))
COMPARED = {
    "recurrent": {"all at once, torch kernel", agreement.PROMPT, "recomputed"},
    "cache": {"all at once", agreement.PROMPT, "recomputed"},
}


def model_of(way):
    return build_model(GenerationConfig(way=way, seq_len=33, **SIZES))


@pytest.mark.parametrize("dtype", agreement.TOLERANCES)
@pytest.mark.parametrize("way", COMPARED)
def test_steps_the_whole_and_everything_again_agree(way, dtype):
    found = list(agreement.agreements(model_of(way), TOKENS, dtype))
    by_kernel = {"all at once, cpu kernel"} if way == "recurrent" and dtype != "float64" else set()
    if not kernels.installed("numba"):
        by_kernel = set()
    assert {one.other for one in found} == COMPARED[way] | by_kernel
    for one in found:
        assert one.holds and one.found.relative <= one.tolerance == agreement.TOLERANCES[dtype]


@pytest.mark.parametrize(
    ("kernel", "dtype"), [("torch", "float64"), ("torch", "float32"), ("cpu", "float32")]
)
def test_a_kernel_that_is_wrong_by_a_thousandth_differs(monkeypatch, kernel, dtype):
    if kernel == "cpu" and not kernels.installed("numba"):
        pytest.skip("the cpu kernel needs Numba")
    right = kernels.KERNELS[kernel]
    wrong = lambda *arguments: right(*arguments) * 1.001  # noqa: E731
    monkeypatch.setitem(kernels.KERNELS, kernel, wrong)
    held = {
        one.other: one.holds for one in agreement.agreements(model_of("recurrent"), TOKENS, dtype)
    }
    assert not held[f"all at once, {kernel} kernel"]
    assert all(held[f"all at once, {other} kernel"] for other in held if other in {"torch", "cpu"})


def test_a_cache_that_forgets_differs_from_everything_again(monkeypatch):
    step = agreement.Decoder.step

    def forgetful(decoder, token):
        decoder.states[0].keys[:, :, :1] = 0  # the first key
        return step(decoder, token)

    monkeypatch.setattr(agreement.Decoder, "step", torch.inference_mode()(forgetful))
    found = list(agreement.agreements(model_of("cache"), TOKENS, "float64"))
    assert found and not any(one.holds for one in found)


def test_what_is_no_number_does_not_agree():
    assert not agreement.Agreement(
        "a", "b", "float64", agreement.Difference(math.nan, math.nan)
    ).holds


def test_a_model_stays_as_it_is():
    model = model_of("recurrent")
    before = {name: x.clone() for name, x in model.state_dict().items()}
    list(agreement.agreements(model, TOKENS, "bfloat16"))
    assert {x.dtype for x in model.parameters()} == {torch.float32}
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert all(block.self_attention.attention.kernel is None for block in model.blocks)


@pytest.mark.parametrize("mechanism", ["linear", "softmax"])
def test_a_trained_model_draws_the_same_digits_in_both_of_its_ways(mechanism):
    kept = kept_models.load_model(mechanism)
    assert all(one.holds for one in agreement.of_kept(kept, "cpu"))
    assert agreement.levels_drawn_alike(kept, "cpu") == (6 * 64, 6 * 64)


def test_the_table_says_who_differs(monkeypatch):
    bad = agreement.Agreement("cache", "recomputed", "float32", agreement.Difference(0.5, 0.25))
    good = agreement.Agreement("cache", "all at once", "float32", agreement.Difference(1e-7, 1e-7))
    monkeypatch.setattr(agreement, "of_sizes", lambda config, device: [good, bad])
    text = parts.agreement_table(SIZES | {"device": "cpu"}).text
    assert "2 of 4 comparisons agree" in text and "<strong>differ</strong>" in text
    assert "2.5e-01" in text and "1.0e-05" in text
