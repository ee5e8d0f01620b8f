"""What the recorded rows were computed by still computes the same, or has a new version."""

import json

import pytest
import torch
from golden import parts

from replib.attention import ATTENTION

VALUES = json.loads(parts.VALUES.read_text())
FLOAT64 = {part.name: part for part in parts.float64_parts()}
FLOAT32 = {part.name: part for part in parts.float32_parts()}
COMPILED = [
    (name, causal)
    for name, mechanism in ATTENTION.items()
    if "cpu" in mechanism.kernels
    for causal in (True, False)
]


def check(part, **tolerance):
    known = VALUES[part.name]
    assert known["versions"] == part.versions, (
        f"{part.name} has new versions: write its numbers by 'python -m tests.golden.parts'"
    )
    assert part.compute() == pytest.approx(known["numbers"], **tolerance), (
        f"{part.name} computes something else: mend it, or raise the VERSION of what changed among "
        f"{', '.join(part.versions)}; its recorded rows are then old"
    )


def test_every_part_has_golden_values():
    assert (FLOAT64 | FLOAT32).keys() == VALUES.keys()


@pytest.mark.parametrize("name", FLOAT64)
def test_a_part_computes_what_it_did(name):
    check(FLOAT64[name], rel=1e-7, abs=1e-9)


@pytest.mark.parametrize("name", FLOAT32)
def test_a_run_of_three_steps_is_what_it_was(name):
    check(FLOAT32[name], rel=2e-3)


@pytest.mark.parametrize(("name", "causal"), COMPILED)
def test_a_compiled_kernel_computes_the_same(name, causal):
    pytest.importorskip("numba")
    kind = "causal" if causal else "not causal"
    right = VALUES[f"attention/{name}/{ATTENTION[name].kernels[0]}/{kind}"]["numbers"]
    found = parts.attention(name, "cpu", causal, torch.float32)
    assert found == pytest.approx(right, rel=1e-3, abs=1e-3)
