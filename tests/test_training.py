"""Training learns, stops, resumes and fails as it says."""

import math
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from choices import CAUSAL

from replib import checkpoints, files
from replib.claims.common import laptop_copy
from replib.tasks import CausalCopy, SequenceCopy
from replib.tasks.images import Pixels
from replib.tasks.text import Text
from replib.tasks.translation import NumberWords, ParallelText
from replib.training import MODELS, Training, TrainingConfig, build_model, n_parameters

TASKS = (
    CausalCopy(seq_len=16),
    SequenceCopy(seq_len=16),
    Pixels(),
    NumberWords(),
    Text(seq_len=16),
)
CHANCE = math.log(10)  # nats a token of uniform guessing among the symbols


def tiny(attention="linear", n_steps=40, **changes):
    return laptop_copy(attention, 16, n_steps, **{"eval_every": 10, "eval_batches": 1} | changes)


def run(training):
    return list(training.metrics())


def same(a: Training, b: Training) -> bool:
    pairs = zip(a.model.parameters(), b.model.parameters(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


@pytest.mark.slow
@pytest.mark.parametrize("attention", CAUSAL)
def test_some_hundred_steps_beat_chance_by_far(attention):
    n_steps = 600 if attention == "fwm" else 300
    last = run(Training(tiny(attention, n_steps, eval_batches=4)))[-1]
    assert last.outcome == "ok"
    assert last.loss < CHANCE / 4
    assert last.accuracy > 0.7


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["softmax", "linear", "delta"])  # others learn as decoders
def test_the_encoder_decoder_learns_to_copy(attention):
    task = SequenceCopy(seq_len=8)
    last = run(Training(tiny(attention, 300, task=task, lr=2e-3, eval_batches=4)))[-1]
    assert last.accuracy > 0.6


def test_metrics_are_means_over_the_positions_in_the_loss():
    config = tiny()
    batch = config.task.sample(8, torch.Generator().manual_seed(0))
    logits = torch.randn(8, 16, 11, dtype=torch.float64)
    losses = -logits.log_softmax(-1).gather(-1, batch.targets[..., None])[..., 0]
    expected = (losses * batch.in_loss).sum() / batch.in_loss.sum()
    assert config.task.loss(logits, batch).item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("optimizer", ["radam", "adamw"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_resumed_run_equals_uninterrupted_run_bit_for_bit(tmp_path, optimizer, dropout):
    config = tiny(optimizer=optimizer, lr_drop_step=25, schedule="drop")
    config = replace(config, model=replace(config.model, dropout=dropout))
    whole = Training(config, seed=3)
    expected = run(whole)
    one = Training(config, seed=3)
    for step in (7, 17, 20, 40):  # before and at an evaluation, and once it has ended
        stopped = list(one.metrics(stop=lambda one=one, step=step: one.step == step))
        assert stopped[-1].outcome == ("interrupted" if step < 40 else "ok")
        one.save(tmp_path / "run.pt")
        one = Training(config, seed=3)
        one.load(tmp_path / "run.pt")
    assert run(one) == one.history[-1:]  # a run that has ended says so again
    assert same(whole, one)
    assert [(m.step, m.train_loss, m.loss, m.accuracy, m.outcome) for m in one.history] == [
        (m.step, m.train_loss, m.loss, m.accuracy, m.outcome) for m in expected
    ]


def test_a_run_that_diverged_stays_so_when_it_is_resumed(tmp_path):
    training = Training(tiny())
    with torch.no_grad():
        training.model.head.weight.fill_(math.nan)
    assert run(training)[-1].outcome == "diverged"
    training.save(tmp_path / "run.pt")
    resumed = Training(tiny())
    resumed.load(tmp_path / "run.pt")
    (last,) = run(resumed)
    assert last.outcome == "diverged" and last.step == training.step


def test_seeds_decide_everything_and_the_global_generator_nothing():
    torch.manual_seed(123)
    before = torch.get_rng_state()
    first, second, other = (Training(tiny(n_steps=5), seed=s) for s in (0, 0, 1))
    run(first)
    torch.manual_seed(456)
    run(second), run(other)
    assert same(first, second)
    assert not same(first, other)
    torch.manual_seed(123)
    run(Training(tiny(n_steps=5)))
    assert torch.equal(before, torch.get_rng_state())


def test_a_loss_that_is_not_finite_ends_the_run_as_diverged():
    training = Training(tiny())
    seen = []
    for m in training.metrics():
        seen.append(m)
        with torch.no_grad():
            training.model.head.weight.fill_(math.nan)
    assert [m.outcome for m in seen] == [None, "diverged"]
    assert seen[-1].step == 20


@pytest.mark.parametrize("content", [b"", b"torn", None])
def test_a_foreign_checkpoint_is_refused_with_the_remedy(tmp_path, content):
    path = tmp_path / "run.pt"
    if content is None:
        Training(tiny(), seed=1).save(path)
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match="delete it"):
        Training(tiny(), seed=0).load(path)


def _moments(state):
    return state["optimizer"]["state"][0]


WRONG = {
    "a text step": lambda state: state.update(step="10"),
    "a step beyond the run": lambda state: state.update(step=10**6),
    "a newer field": lambda state: state.update(newer=1),
    "a newer field of metrics": lambda state: state["history"][0].update(newer=1),
    "no generator": lambda state: state.pop("data"),
    "a generator of no kind": lambda state: state.update(data=torch.zeros(3)),
    "another shape": lambda state: state["model"].update({"head.weight": torch.zeros(2, 2)}),
    "moments of another shape": lambda state: _moments(state).update(exp_avg=torch.zeros(2)),
    "moments of no parameter": lambda state: state["optimizer"]["state"].pop(0),
    "text threads": lambda state: state.update(threads="many"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path, what):
    path, training = tmp_path / "run.pt", Training(tiny())
    next(training.metrics())
    state = training._state()
    WRONG[what](state)
    checkpoints.save(state, path)
    with pytest.raises(ValueError, match=r"run\.pt .*delete it"):
        Training(tiny()).load(path)


def test_no_flipped_bit_of_a_checkpoint_is_loaded(tmp_path):
    path = tmp_path / "run.pt"
    Training(tiny()).save(path)
    content = path.read_bytes()
    for at in range(0, len(content), len(content) // 50):
        flipped = bytearray(content)
        flipped[at] ^= 1 << at % 8
        path.write_bytes(flipped)
        with pytest.raises(ValueError, match="damaged.*delete it"):
            checkpoints.load(path)


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    training, path = Training(tiny()), tmp_path / "run.pt"
    training.save(path)
    old = path.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(files.FileError, match="disk full: free space"):
        training.save(path)
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


def test_every_task_is_trained_below():
    with_files = {ParallelText}  # is trained where it has some, in tests/tasks
    assert {type(task) for task in TASKS} == set(MODELS) - with_files


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS, ids=lambda task: type(task).__name__)
@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_lower_precision_trains_and_is_set_back(task, precision):
    before = torch.backends.cuda.matmul.fp32_precision
    config = tiny(n_steps=30, precision=precision, task=task)
    first, last = (m.train_loss for m in (lambda ms: (ms[0], ms[-1]))(run(Training(config))))
    assert last < first
    assert torch.backends.cuda.matmul.fp32_precision == before


def test_schedules_are_those_of_the_docstring():
    drop = TrainingConfig()
    assert [drop.lr_at(s) for s in (0, 2999, 3000)] == pytest.approx([1e-3, 1e-3, 1e-4])
    cosine = TrainingConfig(schedule="cosine", warmup_steps=10, n_steps=110, lr=1.0)
    rates = [cosine.lr_at(s) for s in (0, 9, 10, 60, 110)]
    assert rates == pytest.approx([0.1, 1.0, 1.0, 0.5, 0.0])
    root = TrainingConfig(schedule="inverse_sqrt", warmup_steps=4, lr=1.0)
    assert [root.lr_at(s) for s in (0, 3, 15, 35)] == pytest.approx([0.25, 1.0, 0.5, 1 / 3])


def test_smoothed_labels_share_the_loss_among_all_tokens_while_training_alone():
    config = tiny(label_smoothing=0.2)
    batch = config.task.sample(8, torch.Generator().manual_seed(0))
    logits = torch.randn(8, 16, 11, dtype=torch.float64)
    logs = logits.log_softmax(-1)
    right = logs.gather(-1, batch.targets[..., None])[..., 0]
    losses = -(0.8 * right + 0.2 * logs.mean(-1))
    expected = (losses * batch.in_loss).sum() / batch.in_loss.sum()
    found = config.task.loss(logits, batch, label_smoothing=0.2).item()
    assert found == pytest.approx(expected.item(), rel=1e-6)
    smoothed, plain = (Training(one, seed=0) for one in (config, tiny()))
    assert smoothed.evaluate() == plain.evaluate()
    assert smoothed.train_step() != plain.train_step()
    with pytest.raises(ValueError, match="images have no labels to smooth"):
        tiny(task=Pixels(), label_smoothing=0.1)


def test_clipping_bounds_each_tensor_or_all_together():
    from replib.training import _clip

    for kind in ("tensor", "global"):
        model = Training(tiny()).model
        for p in model.parameters():
            p.grad = torch.full_like(p, 10.0)
        _clip(model, kind)
        norms = torch.stack([p.grad.norm() for p in model.parameters()])
        assert (norms if kind == "tensor" else norms.norm()) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"batch_size": 0}, "batch_size 0: use 1 to"),
        ({"n_steps": 0}, "n_steps 0: use 1 to"),
        ({"lr": -1.0}, "lr -1.0: use above 0"),
        ({"optimizer": "sgd"}, "use radam, adamw"),
        ({"precision": "fp4"}, "use float32, tf32, bf16"),
        ({"schedule": "step"}, "use drop, cosine"),
        ({"clip": "value"}, "use tensor, global"),
        ({"task": CausalCopy}, "seq_len"),
    ],
)
def test_impossible_settings_are_refused_with_the_remedy(changes, message):
    with pytest.raises(ValueError, match=message):
        if changes.get("task") is CausalCopy:
            changes = {"task": CausalCopy(seq_len=10**9)}
        TrainingConfig(**changes)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on a CPU needs g++")
@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() == "DEFAULT",
    reason="torch 2.13 writes vector code that does not compile without vectors",
)
def test_a_compiled_model_learns_the_same():
    config = tiny(n_steps=3, eval_every=3)
    (eager,) = run(Training(config))
    (compiled,) = run(Training(replace(config, compile=True)))
    assert compiled.loss == pytest.approx(eager.loss, rel=1e-4)


@pytest.mark.parametrize("attention", CAUSAL)
def test_parameters_are_counted_as_they_are(attention):
    config = laptop_copy(attention, 8, 1)
    assert n_parameters(config) == sum(x.numel() for x in build_model(config).parameters())


@pytest.mark.slow
def test_parameters_are_counted_without_what_draws_them():
    code = (
        "import sys; from replib.training import TrainingConfig, n_parameters; "
        "assert n_parameters(TrainingConfig()) > 1000; assert 'sympy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
