"""The library computes the same without the folder `replib/kernels`, in plain torch."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import replib

# An editable install finds modules of the checkout that the copy lacks.
IN_COPY = """
import sys
sys.meta_path[:] = [x for x in sys.meta_path if "editable" not in getattr(x, "__module__", "")]
"""
PROGRAM = """
import importlib.util
import torch
assert importlib.util.find_spec("replib.kernels") is None
from replib.attention import causal_names
from replib.fast_weights import MemoryConfig, RetrievalConfig, RetrievalTraining
from replib.generation import generate
from replib.models import TransformerConfig
from replib.tasks import AssociativeRetrieval, CausalCopy
from replib.training import Training, TrainingConfig

losses = {}
for name in causal_names():
    model = TransformerConfig(attention=name, n_layers=1, n_heads=2, d_model=16, d_feedforward=16)
    task = CausalCopy(seq_len=16)
    training = Training(TrainingConfig(task=task, model=model, n_steps=3), seed=0, device="cpu")
    losses[name] = [training.train_step().item() for _ in range(3)]
    tokens = generate(training.model, torch.ones(1, 4, dtype=torch.int64), 3)
    assert tokens.shape == (1, 3)
for rule in ("sum", "delta", "fwm"):
    model = MemoryConfig(update_rule=rule, head_dim=8)
    task = AssociativeRetrieval(n_keys=8, with_replacement=True)
    run = RetrievalTraining(RetrievalConfig(task=task, model=model, batch_size=4), device="cpu")
    losses[rule] = [run.train_step().item() for _ in range(3)]
print(losses)
"""


@pytest.fixture(scope="module")
def without_kernels(tmp_path_factory):
    """A folder with the package, but for its kernels."""
    folder = tmp_path_factory.mktemp("copy")
    ignored = shutil.ignore_patterns("kernels", "__pycache__")
    package = Path(replib.__file__).parent
    shutil.copytree(package, folder / "replib", ignore=ignored)
    return folder


def losses(program, folder):
    environment = os.environ | {"PYTHONPATH": str(folder)}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return eval(done.stdout)


@pytest.mark.slow
def test_every_mechanism_trains_and_generates_the_same_without_kernels(without_kernels):
    with_them = PROGRAM.replace('find_spec("replib.kernels") is None', "find_spec('torch')")
    expected = losses(with_them, Path(replib.__file__).parents[1])
    found = losses(IN_COPY + PROGRAM, without_kernels)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name] == pytest.approx(values, rel=1e-4), name


@pytest.mark.slow
def test_a_compiled_kernel_is_refused_without_kernels(without_kernels):
    program = """
import torch
from replib.attention import linear_attention
q = torch.ones(1, 1, 4, 2)
try:
    linear_attention(q, q, q, kernel="cpu")
except ValueError as error:
    print(repr(str(error)))
"""
    assert "needs the folder replib/kernels: use kernel='torch'" in losses(
        IN_COPY + program, without_kernels
    )
