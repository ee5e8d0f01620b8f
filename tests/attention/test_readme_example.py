"""The mechanism of docs/adding_a_mechanism.md, as it is written there, in a copy of the package."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import replib

PACKAGE = Path(replib.__file__).parent
# An editable install finds the package where it was installed from.
PROGRAM = """
import sys
sys.meta_path[:] = [x for x in sys.meta_path if "editable" not in getattr(x, "__module__", "")]

import torch
from replib.attention import ATTENTION
from replib.generation import Decoder
from replib.lab.timing import CostConfig, measure_cost
from replib.models import CausalTransformer, TransformerConfig
from replib.pages import style
from replib.claims.cost_page import ALL_VARIANTS, variants
from replib.tasks import CausalCopy
from replib.training import Training, TrainingConfig

NAME = "retention"
assert list(ATTENTION)[-1] == NAME

# It is offered, and has a colour of its own.
offered = [name for name in ALL_VARIANTS if name.startswith(NAME)]
assert offered == ["retention decay 0.95", "retention decay 0.99"], offered
assert set(offered) <= set(variants().values)
assert style.colour(NAME) not in [style.colour(name) for name in ATTENTION if name != NAME]

# A whole sequence is its steps, and no output depends on a later position.
for options in ATTENTION[NAME].offered:
    attention = ATTENTION[NAME].for_model(n_heads=2, head_dim=8, max_len=20, options=options)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(2, heads, 20, size, generator=generator, dtype=torch.float64)
        for heads, size in ((4, 8), (2, 8), (2, 5))
    )
    y, reads = attention(q, k, v), []
    state = attention.init_state(2, 2, 8, 5, dtype=torch.float64)
    for i in range(20):
        read, state = attention.step(state, q[:, :, i], k[:, :, i], v[:, :, i])
        reads.append(read)
    torch.testing.assert_close(torch.stack(reads, 2), y, rtol=1e-10, atol=1e-12)
    later = [x.clone() for x in (q, k, v)]
    for x in later:
        x[:, :, 11:] = 7.0
    torch.testing.assert_close(attention(*later)[:, :, :11], y[:, :, :11], rtol=0, atol=0)
    mask = torch.arange(20).expand(2, -1) < torch.tensor([[3], [0]])
    masked = attention(q, k, v, key_padding_mask=mask)
    alone = attention(*(x[:1, :, 3:] for x in (q, k, v)))
    torch.testing.assert_close(masked[:1, :, 3:], alone, rtol=1e-10, atol=1e-12)

# A model decodes with it, its cost is measured, and it learns.
config = TransformerConfig(
    attention=NAME, n_layers=2, n_heads=2, d_model=32, d_feedforward=64, norm="pre", dropout=0.0
)
model = CausalTransformer(config, vocab_size=7, max_len=20).double().eval()
tokens = torch.randint(7, (2, 9), generator=generator)
decoder = Decoder(model, 2)
decoder.prefill(tokens[:, :3])
logits = torch.stack([decoder.step(x) for x in tokens[:, 3:].unbind(1)], 1)
torch.testing.assert_close(logits, model(tokens)[:, 3:], rtol=1e-9, atol=1e-10)
(cost,) = measure_cost([CostConfig(attention=NAME, seq_len=16)], n_repeats=2)
assert cost.outcome == "ok"
run = TrainingConfig(
    task=CausalCopy(seq_len=16), model=config, batch_size=16, optimizer="adamw", lr=5e-3
)
training = Training(run, seed=0, device="cpu")
losses = [training.train_step().item() for _ in range(150)]
first, last = sum(losses[:10]) / 10, sum(losses[-10:]) / 10
assert last < 0.75 * first, (first, last)
"""


@pytest.fixture
def with_example(tmp_path):
    """A copy of the package with the file and the line of the document."""
    text = (PACKAGE.parent / "docs" / "adding_a_mechanism.md").read_text()
    file, line = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    shutil.copytree(
        PACKAGE, tmp_path / "replib", ignore=shutil.ignore_patterns("__pycache__", "*.nbi", "*.nbc")
    )
    shutil.copytree(PACKAGE.parent / "benchmarks", tmp_path / "benchmarks")
    folder = tmp_path / "replib" / "attention"
    (folder / "retention.py").write_text(file)
    registry = folder / "__init__.py"
    registry.write_text(f"{registry.read_text()}\n{line}")
    return tmp_path


@pytest.mark.slow
def test_the_documented_mechanism_works_everywhere(with_example):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=with_example,
        env=os.environ | {"PYTHONPATH": str(with_example)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
