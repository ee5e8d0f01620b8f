"""A kernel that computes something else is told."""

import pytest
import torch

from replib.lab import oracles


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(oracles, "SIZES", ((67, 16, 8),))
    monkeypatch.setattr(oracles, "DELTA_SIZES", ((67, 8, 8),))
    monkeypatch.setattr(oracles, "KERNELS", {"torch": None})


def test_the_kernels_of_this_machine_pass():
    checks = list(oracles.checks("cpu"))
    assert len(checks) == 5 and all(check.passed for check in checks)
    assert all(str(check).startswith("ok ") for check in checks)


def test_a_wrong_result_and_a_kernel_that_raises_are_failures(monkeypatch):
    right = oracles.linear_attention

    def wrong(q, k, v, *, kernel, causal):
        if kernel == "plain":
            return right(q, k, v, kernel=kernel, causal=causal)
        if not causal:
            raise RuntimeError("no image\nfor this device")
        return right(q, k, v, kernel=kernel, causal=causal) * (1 + 1e-4)

    monkeypatch.setattr(oracles, "linear_attention", wrong)
    causal, not_causal = [c for c in oracles.checks("cpu") if "linear torch, float32" in c.what]
    assert not causal.passed and causal.error == pytest.approx(1e-4, rel=0.1)
    assert not not_causal.passed and not_causal.error is None
    assert "FAIL" in str(not_causal) and "RuntimeError: no image, at most" in str(not_causal)


def test_a_wrong_gradient_alone_is_a_failure(monkeypatch):
    right = oracles.delta_rule

    def wrong(q, k, v, beta, *, kernel):
        if kernel != "plain":
            beta = beta + 0.01 * (beta - beta.detach())
        return right(q, k, v, beta, kernel=kernel)

    monkeypatch.setattr(oracles, "delta_rule", wrong)
    (check,) = [c for c in oracles.checks("cpu") if "delta" in c.what]
    assert not check.passed and check.error == pytest.approx(0.01, rel=0.1)


def test_checks_end_when_they_are_stopped():
    asked = iter([False, True])
    assert len(list(oracles.checks(torch.device("cpu"), lambda: next(asked)))) == 1
