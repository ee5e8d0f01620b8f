"""What the recorded rows were computed by still computes the same."""

import json

import pytest
import torch
from golden import parts

from replib.attention import ATTENTION

VALUES = json.loads(parts.VALUES.read_text())
FLOAT64, FLOAT32 = dict(parts.float64_parts()), dict(parts.float32_parts())
COMPILED = [
    (name, causal)
    for name, mechanism in ATTENTION.items()
    if "cpu" in mechanism.implementations
    for causal in (True, False)
]


def test_every_part_has_golden_values():
    assert (FLOAT64 | FLOAT32).keys() == VALUES.keys()


@pytest.mark.parametrize("part", FLOAT64)
def test_a_part_computes_what_it_did(part):
    assert FLOAT64[part]() == pytest.approx(VALUES[part], rel=1e-7, abs=1e-9)


@pytest.mark.parametrize("part", FLOAT32)
def test_a_run_of_three_steps_is_what_it_was(part):
    assert FLOAT32[part]() == pytest.approx(VALUES[part], rel=2e-3)


@pytest.mark.parametrize(("name", "causal"), COMPILED)
def test_a_compiled_kernel_computes_the_same(name, causal):
    pytest.importorskip("numba")
    kind = "causal" if causal else "not causal"
    right = VALUES[f"attention/{name}/{ATTENTION[name].implementations[0]}/{kind}"]
    found = parts.attention(name, "cpu", causal, torch.float32)
    assert found == pytest.approx(right, rel=1e-3, abs=1e-3)
