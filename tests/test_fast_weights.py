"""Associative retrieval: task, memories against the published model, stop rules and resuming.

P seeds, B batch, N sequence length, L number of queries, S keys, R feature size, M value size.
"""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import layer_norm

from benchmarks.peers import PublishedMemory
from replib import fast_weights
from replib.attention.dpfp import DPFPAttention
from replib.attention.performer import PerformerAttention
from replib.claims import EXPERIMENTS
from replib.claims.capacity.grid import CAPACITY_MEMORIES, retrieval_config
from replib.claims.update_rules.grid import UPDATE_RULE_MEMORIES
from replib.fast_weights import (
    AssociativeMemory,
    MemoryConfig,
    RetrievalConfig,
    RetrievalTraining,
    retrieval_loss,
)
from replib.kernels import installed
from replib.kernels.delta.torch import read_weights
from replib.kernels.retrieval import fwm
from replib.lab.record import Experiment, record
from replib.lab.recorded import latest, recorded_rows
from replib.lab.run import RetrievalJob
from replib.published import published
from replib.tasks import Associations, AssociativeRetrieval

MEMORIES = list(dict.fromkeys(CAPACITY_MEMORIES + UPDATE_RULE_MEMORIES))
every_memory = pytest.mark.parametrize("memory", MEMORIES, ids=lambda m: m.published_name)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def small(memory, **changes):
    """A run of a few steps on few keys."""
    task = AssociativeRetrieval(n_keys=8, with_replacement=memory.update_rule != "sum")
    options = {"n_steps": 20, "eval_every": 5, "eval_sequences": 2, "batch_size": 4}
    return RetrievalConfig(
        **{"task": task, "model": replace(memory, head_dim=8)} | options | changes
    )


# Task


def test_every_key_occurs_once_without_replacement():
    batch = AssociativeRetrieval(n_keys=30).sample(7, generator())
    for x in (batch.keys, batch.values):
        assert torch.equal(x.sort(dim=1).values, torch.arange(30).expand(7, -1))
    assert batch.queries.shape == (7, 1) and batch.asked.all()


@pytest.mark.parametrize("with_replacement", [False, True])
def test_the_target_is_the_last_value_of_the_key(with_replacement):
    task = AssociativeRetrieval(n_keys=6, with_replacement=with_replacement)
    assert task.seq_len == (12 if with_replacement else 6)
    for batch in (task.sample(20, generator()), task.sample_all_queries(20, 200, generator())):
        for b in range(20):
            last = dict(zip(batch.keys[b].tolist(), batch.values[b].tolist(), strict=True))
            for q, t, asked in zip(batch.queries[b], batch.targets[b], batch.asked[b], strict=True):
                assert asked == (q.item() in last)
                assert not asked or last[q.item()] == t


def test_evaluation_asks_for_all_keys_up_to_a_number():
    task = AssociativeRetrieval(n_keys=6)
    assert task.sample_all_queries(2, 200, generator()).queries.tolist() == [list(range(6))] * 2
    assert task.sample_all_queries(2, 4, generator()).queries.shape == (2, 4)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"n_keys": 1}, "n_keys 1: use 2 to 4096"),
        ({"n_keys": 5, "seq_len": 6}, "seq_len 6 with 5 keys: use 1 to 5, or with_replacement"),
        ({"n_keys": 5, "seq_len": 0}, "seq_len 0"),
    ],
)
def test_tasks_that_cannot_be_drawn_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        AssociativeRetrieval(**options)


# Memories


def drawn(config, n_sequences=4, seeds=(0, 1)):
    """A training, a batch of it with the leading P, and directions."""
    training = RetrievalTraining(config, seeds=seeds)
    batches = [config.task.sample(n_sequences, training.data[i]) for i in training.active]
    return training, fast_weights.stacked(batches), training._directions(1)


def of_seed(batch, i):
    return Associations(*(x[i] for x in vars(batch).values()))


def published_losses(model, batch, directions):
    """0.5·Σ squared error, the mean over sequences, as the published code has it."""
    right = torch.nn.functional.one_hot(batch.targets[:, 0], model.n_keys).float()
    return (0.5 * (right - model(batch, directions)).square()).sum(-1).mean()


@pytest.mark.parametrize("fused", [True, False])
@every_memory
def test_loss_and_gradients_are_those_of_the_published_model(memory, fused, monkeypatch):
    if fused and not installed("numba"):
        pytest.skip("Numba is not installed")
    if not fused:
        monkeypatch.setattr(fast_weights, "_fuses", lambda config: False)
    training, batch, directions = drawn(small(memory))
    losses = retrieval_loss(training.model(batch, directions), batch)
    ours = torch.autograd.grad(losses.sum(), training.model.embedding)[0]
    for i in range(2):
        one = RetrievalTraining(training.config, seeds=(i,)).model
        theirs = PublishedMemory(one)
        loss = published_losses(
            theirs, of_seed(batch, i), None if directions is None else directions[i]
        )
        expected = torch.autograd.grad(loss, theirs.embedding.weight)[0][: one.n_keys]
        torch.testing.assert_close(losses[i], loss, rtol=2e-5, atol=1e-6)
        scale = expected.abs().max().item()
        torch.testing.assert_close(ours[i], expected, rtol=1e-3, atol=2e-4 * scale)


@pytest.mark.skipif(not installed("numba"), reason="Numba is not installed")
@pytest.mark.parametrize("with_beta", [True, False])
@pytest.mark.parametrize("nu", [0, 1, 3, -1])
@pytest.mark.parametrize("n", [1, 7, 40])
def test_the_fused_memory_is_the_plain_one(n, nu, with_beta):
    from replib.attention.feature_maps import dpfp, elu1
    from replib.kernels.retrieval import sums_cpu

    assert sums_cpu.ELU1 == -1
    g, d = generator(n), 16 if nu < 0 else 8
    k = torch.randn(2, 3, n, d, generator=g)
    if nu >= 0:
        k = k.abs() - 0.3 * (nu > 0)
    size = 16 * nu if nu > 0 else d
    q, beta = torch.rand(2, 3, 1, size, generator=g), torch.rand(2, 3, n, generator=g)
    inputs = [x.requires_grad_() for x in (q, k, *[beta] * with_beta)]
    found = sums_cpu.read_weights(q, k, beta if with_beta else None, nu)
    phi = elu1(k.double()) if nu < 0 else (dpfp(k, nu) if nu else k).double()
    expected = q.double() @ phi.mT
    if with_beta:
        phi = phi / phi.sum(-1, keepdim=True)
        expected = read_weights(q.double(), phi, beta.double())
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)
    dy = torch.randn(found.shape, generator=g)
    for a, e in zip(
        torch.autograd.grad(found, inputs, dy),
        torch.autograd.grad(expected, inputs, dy.double()),
        strict=True,
    ):
        torch.testing.assert_close(a, e, rtol=1e-3, atol=1e-4 * e.abs().max().item())


def fwm_memories(k, v, beta):
    """The recurrence of `kernels.retrieval.fwm` as it is written: a memory (P, M, R) after another,
    with the norm (P,) of what is divided."""
    w = k.new_zeros(*v.shape[::2], k.shape[2])
    for i in range(k.shape[1]):
        error = v[:, i] - torch.einsum("pmr,pr->pm", w, k[:, i])
        w = w + torch.einsum("pm,pr->pmr", beta[:, i, None] * error, k[:, i])
        norm = w.flatten(1).norm(dim=1)
        if i:
            w = w / norm.clamp(min=1)[:, None, None]
        yield w, norm


def fwm_loop(q, k, v, beta):
    """What queries read of the last memory."""
    *_, (w, _) = fwm_memories(k, v, beta)
    return torch.einsum("pmr,plr->plm", w, q)


@pytest.mark.parametrize("scale", [0.1, 1.0, 4.0])  # seldom, often and always above norm 1
@pytest.mark.parametrize("n", [1, 2, 19, 20, 65])
def test_fwm_is_its_written_recurrence_gradients_too(n, scale):
    g = generator(n)
    q, k, v = (torch.randn(2, x, 5, generator=g, dtype=torch.float64) for x in (3, n, n))
    k, beta = scale * k, torch.rand(2, n, generator=g, dtype=torch.float64)
    inputs = [x.requires_grad_() for x in (q, k, v[..., :4].contiguous(), beta)]
    found, expected = fwm.retrieve(*inputs), fwm_loop(*inputs)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
    dy = torch.randn(found.shape, generator=g, dtype=torch.float64)
    for a, e in zip(
        torch.autograd.grad(found, inputs, dy),
        torch.autograd.grad(expected, inputs, dy),
        strict=True,
    ):
        torch.testing.assert_close(a, e, rtol=1e-7, atol=1e-9 * (1 + e.abs().max().item()))


def fwm_inputs(p, n_queries, n, r, m, scale=1.0):
    g = generator(n)
    q, k, v = (torch.randn(p, x, y, generator=g) for x, y in ((n_queries, r), (n, r), (n, m)))
    return [x.requires_grad_() for x in (q, scale * k, v, torch.rand(p, n, generator=g))]


def forward_and_gradients(form, inputs):
    y = form(*inputs)
    dy = torch.randn(y.shape, generator=generator()).to(y.dtype)
    return y, *torch.autograd.grad(y, inputs, dy)


needs_numba = pytest.mark.skipif(not installed("numba"), reason="Numba is not installed")


@needs_numba
@pytest.mark.parametrize("scale", [1e-3, 1.0])  # norms below 1, and above it
@pytest.mark.parametrize(
    "p, n_queries, n, r, m",
    [(1, 1, 1, 2, 1), (2, 3, 5, 9, 16), (3, 1, 16, 8, 20), (2, 20, 75, 12, 33), (2, 2, 200, 64, 7)],
)
def test_the_fused_fwm_is_the_torch_form_and_the_recurrence(p, n_queries, n, r, m, scale):
    inputs = fwm_inputs(p, n_queries, n, r, m, scale)
    norms = torch.stack([norm for _, norm in fwm_memories(*inputs[1:])])
    assert norms.max() < 1 if scale < 1 else n == 1 or (norms > 1).float().mean() > 0.5
    found = forward_and_gradients(fwm.retrieve, inputs)
    wide = [x.detach().double().requires_grad_() for x in inputs]
    for form in (fwm.retrieve, fwm_loop):
        for a, e in zip(found, forward_and_gradients(form, wide), strict=True):
            torch.testing.assert_close(a.double(), e, rtol=1e-4, atol=1e-5 * e.abs().max().item())


@needs_numba
def test_the_fused_fwm_takes_strided_tensors_and_is_the_same_on_two_threads():
    q, k, v, beta = inputs = fwm_inputs(5, 2, 37, 6, 24)
    expected = forward_and_gradients(fwm.retrieve, inputs)
    strided = [q.mT.contiguous().mT, k.mT.contiguous().mT, v.repeat(1, 2, 1)[:, :37]]
    strided += [torch.stack([beta, beta], dim=-1)[..., 0]]
    assert not any(x.is_contiguous() for x in strided)
    strided = [x.detach().requires_grad_() for x in strided]
    before = torch.get_num_threads()
    try:
        for n_threads in (1, 2):
            torch.set_num_threads(n_threads)
            for a, e in zip(forward_and_gradients(fwm.retrieve, strided), expected, strict=True):
                torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-5 * e.abs().max().item())
    finally:
        torch.set_num_threads(before)


@needs_numba
def test_the_fused_fwm_needs_no_gradient_of_the_values():
    q, k, v, beta = fwm_inputs(2, 1, 20, 6, 20)
    _, dq, dk, _, d_beta = forward_and_gradients(fwm.retrieve, [q, k, v, beta])
    found = forward_and_gradients(lambda q, k, b: fwm.retrieve(q, k, v.detach(), b), [q, k, beta])
    assert all(torch.equal(a, e) for a, e in zip(found[1:], (dq, dk, d_beta), strict=True))


@needs_numba
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("place", range(1, 4), ids=["k", "v", "beta"])
@pytest.mark.parametrize("write", [0, 3, 20, 39])
def test_the_fused_fwm_shows_what_is_not_finite_in_its_own_sequence_alone(bad, place, write):
    inputs = fwm_inputs(2, 1, 40, 6, 20)
    with torch.no_grad():
        inputs[place][0, write] = bad
    found = forward_and_gradients(fwm.retrieve, inputs)
    assert found[0][0].isnan().all()
    for x in found:
        assert x[0].isnan().any() and x[1].isfinite().all()


def test_fwm_is_fused_for_float32_on_the_cpu_where_numba_is_installed(monkeypatch):
    calls = []
    if installed("numba"):
        from replib.kernels.retrieval import fwm_cpu

        monkeypatch.setattr(fwm_cpu, "_run", lambda *arguments: calls.append(arguments))
    inputs = fwm_inputs(1, 1, 3, 4, 2)
    fwm.retrieve(*inputs)
    assert len(calls) == installed("numba")
    fwm.retrieve(*(x.double() for x in inputs))
    fwm.retrieve(*(x[:0] for x in inputs))
    monkeypatch.setattr(fwm, "installed", lambda package: False)
    fwm.retrieve(*inputs)
    assert len(calls) == installed("numba")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fwm_does_not_depend_on_what_fresh_memory_holds(monkeypatch, dtype):
    inputs = [x.detach().to(dtype).requires_grad_() for x in fwm_inputs(2, 3, 20, 5, 5)]
    expected = forward_and_gradients(fwm.retrieve, inputs)
    empty, nan = torch.empty, math.nan

    def dirty(*shape, **options):
        x = empty(*shape, **options)
        return x.fill_(255 if x.dtype == torch.uint8 else nan)

    monkeypatch.setattr(torch, "empty", dirty)
    monkeypatch.setattr(torch, "empty_like", lambda x: torch.full_like(x, nan))
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda x, *shape: x.new_full(shape, nan))
    found = forward_and_gradients(fwm.retrieve, inputs)
    assert all(torch.equal(a, e) for a, e in zip(found, expected, strict=True))


def test_fwm_stays_finite_where_its_memory_is_renormalised_at_each_of_many_writes():
    g = generator()
    q, k, v = (torch.randn(1, n, 64, generator=g) for n in (1, 400, 400))
    inputs = [x.requires_grad_() for x in (q, k, v, torch.rand(1, 400, generator=g))]
    y = fwm.retrieve(*inputs)
    torch.testing.assert_close(y, fwm_loop(*inputs), rtol=1e-2, atol=1e-3)
    assert all(x.isfinite().all() for x in torch.autograd.grad(y.sum(), inputs))


def once_differentiable_kernels():
    """Kernels, and inputs of theirs."""
    yield fwm.retrieve, [x.detach().double() for x in fwm_inputs(1, 2, 6, 4, 3)]
    if installed("numba"):
        from replib.kernels.retrieval import sums_cpu

        yield fwm.retrieve, fwm_inputs(1, 2, 6, 4, 3)
        g = generator(1)
        q, k, beta = (torch.rand(*size, generator=g) for size in ((2, 1, 8), (2, 6, 8), (2, 6)))
        yield lambda *x: sums_cpu.read_weights(*x, 0), [q, k, beta]
        strided = k.mT.contiguous().mT
        yield lambda *x: sums_cpu.read_weights(*x, 0), [q, strided, beta]


def test_second_derivatives_of_kernels_that_have_none_raise_whatever_they_are_by():
    for kernel, inputs in once_differentiable_kernels():
        for i in range(len(inputs)):
            inputs = [x.detach() for x in inputs]
            inputs = [2 * x.requires_grad_() for x in inputs]  # there are other ways to them
            first = torch.autograd.grad(kernel(*inputs).square().sum(), inputs, create_graph=True)
            for gradient in first:
                with pytest.raises(NotImplementedError, match="differentiable once"):
                    torch.autograd.grad(gradient.sum(), inputs[i], retain_graph=True)


def test_embeddings_and_features_of_memories_have_second_derivatives():
    table = torch.randn(2, 4, 3, generator=generator(), dtype=torch.float64, requires_grad=True)
    index = torch.tensor([[[0, 1, 1]], [[3, 3, 2]]])
    assert torch.autograd.gradgradcheck(lambda t: fast_weights._looked_up(t, index) ** 3, table)
    assert torch.autograd.gradgradcheck(fast_weights._Elu1.apply, table)


def test_write_strengths_of_a_seed_are_the_same_alone_and_among_others():
    """To the last bit, where products with more than a column are."""
    g = generator()
    x, w = torch.randn(3, 20, 44, generator=g), torch.randn(3, 44, 64, generator=g)
    if not torch.equal((x @ w)[:1], x[:1] @ w[:1]):
        pytest.skip("products here depend on how many there are")
    config = small(MemoryConfig(update_rule="delta"))
    together, batch, _ = drawn(config)
    for i, seed in enumerate(seed.seed for seed in together.seeds):
        alone = RetrievalTraining(config, seeds=(seed,)).model
        one = Associations(*(x[i : i + 1] for x in vars(batch).values()))
        assert torch.equal(alone.strengths(one)[0], together.model.strengths(batch)[i])


def test_what_a_memory_of_the_rule_fwm_reads_is_normalised():
    training, batch, _ = drawn(small(MemoryConfig(attention="tanh", update_rule="fwm")))
    y = training.model(batch)
    torch.testing.assert_close(y, layer_norm(y, y.shape[-1:]), atol=1e-2, rtol=1e-2)


def test_published_names_are_those_of_the_published_logs():
    logs = published()["fastweights_logs"]
    assert {m.published_name for m in UPDATE_RULE_MEMORIES} == set(logs["setting2"])
    names = {m.published_name for m in CAPACITY_MEMORIES}
    assert set(logs["setting1"]) <= names and names - set(logs["setting1"]) <= {"dpfp3_sum"}


@pytest.mark.parametrize(
    "options, message",
    [
        ({"attention": "lsh"}, "unknown attention 'lsh': use softmax, linear"),
        ({"update_rule": "ours"}, "unknown update_rule 'ours': use sum, delta, fwm"),
        (
            {"attention": "dpfp", "options": PerformerAttention.Options()},
            "are no options of DPFP attention",
        ),
        (
            {"attention": "dpfp", "options": DPFPAttention.Options(nu=3), "head_dim": 3},
            "use a nu below head_dim",
        ),
        ({"options": DPFPAttention.Options()}, "linear features have no options: use None"),
        ({"attention": "softmax", "update_rule": "delta"}, "no memory to update"),
        ({"head_dim": 1}, "head_dim 1: use 2 to 1024"),
        ({"eps": 1.0}, "eps 1.0"),
    ],
)
def test_memories_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MemoryConfig(**options)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"batch_size": 0}, "batch_size 0: use 1 to 4096"),
        ({"patience": 0}, "patience 0"),
        ({"lr": 0.0}, "lr 0.0: use above 0"),
        ({"report": "first"}, "unknown report 'first': use best, last"),
        ({"eval_half_length": True}, "use with_replacement=True"),
    ],
)
def test_runs_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        RetrievalConfig(**options)


def test_a_memory_needs_a_seed():
    with pytest.raises(ValueError, match="give at least one"):
        AssociativeMemory(MemoryConfig(), n_keys=4, seeds=())


# Training


@pytest.mark.slow
def test_linear_attention_solves_ten_keys_within_some_hundred_steps():
    config = retrieval_config(10, MemoryConfig())
    last = list(RetrievalTraining(config, seeds=(0,)).metrics())[-1]
    assert last.outcome == "ok" and last.losses[0] <= 1e-3 and last.step < 1500


def test_a_seed_is_the_same_alone_and_among_others():
    for memory in (
        MemoryConfig(),
        MemoryConfig(attention="performer", options=PerformerAttention.Options(n_directions=64)),
    ):
        config = small(memory)
        together = RetrievalTraining(config, seeds=(0, 1, 2))
        list(together.metrics())
        for i in range(3):
            alone = RetrievalTraining(config, seeds=(i,))
            list(alone.metrics())
            assert alone.seeds[0].steps == together.seeds[i].steps
            assert alone.seeds[0].losses == pytest.approx(together.seeds[i].losses, rel=1e-4)


def with_losses(training, monkeypatch, *rows):
    """Let evaluations of a training give the losses of each row in turn, a seed a column."""
    rows = iter(rows)

    def evaluate():
        row = next(rows)
        return torch.tensor([row[i] for i in training.active])

    monkeypatch.setattr(training, "evaluate", evaluate)


def test_a_seed_ends_when_solved_or_after_more_evaluations_without_progress_than_patience(
    monkeypatch,
):
    config = small(MemoryConfig(), n_steps=1000, eval_every=1, patience=2)
    training = RetrievalTraining(config, seeds=(0, 1, 2))
    nan = math.nan
    rows = [(0.4, 0.5, 0.5), (0.0009, 0.6, 0.4), (9, 0.5, nan), (9, 0.5, 9), (9, 9, 9)]
    with_losses(training, monkeypatch, *rows)
    metrics = list(training.metrics())
    assert [seed.reason for seed in training.seeds] == ["solved", "no progress", "not finite"]
    assert [seed.steps[-1] for seed in training.seeds] == [2, 4, 3]
    assert [m.outcomes for m in metrics][-1] == ("ok", "ok", "diverged")
    assert metrics[2].losses[0] is None and metrics[-1].outcome == "diverged"
    assert len(training.model.embedding) == 0


def test_the_best_loss_is_reported_or_the_last_as_in_the_published_figures(monkeypatch):
    for report, expected in (("best", 0.2), ("last", 0.3)):
        config = small(MemoryConfig(), n_steps=3, eval_every=1, report=report)
        training = RetrievalTraining(config, seeds=(0,))
        with_losses(training, monkeypatch, (0.5,), (0.2,), (0.3,))
        list(training.metrics())
        summary = training.seeds[0].summary(config)
        assert summary["reported_loss"] == pytest.approx(expected)
        assert summary["reason"] == "all steps" and not summary["solved"]


def test_setting_2_is_evaluated_at_its_length_or_on_half_of_it_as_published():
    memory = MemoryConfig(update_rule="delta")
    assert small(memory).eval_task.seq_len == 16
    half = small(memory, eval_half_length=True)
    assert (half.eval_task.seq_len, half.task.seq_len) == (8, 16)
    assert RetrievalTraining(half).evaluate().isfinite().all()


@every_memory
def test_a_memory_in_float64_reads_what_one_in_float32_does(memory):
    training, batch, directions = drawn(small(memory))
    expected = training.model(batch, directions)
    actual = training.model.double()(batch, None if directions is None else directions.double())
    assert actual.dtype == torch.float64
    torch.testing.assert_close(actual.float(), expected, rtol=1e-4, atol=1e-5)


def test_a_seed_ends_while_somebody_holds_a_graph_of_the_step_before(monkeypatch):
    config = small(MemoryConfig(), n_steps=3, eval_every=1)
    training, held = RetrievalTraining(config, seeds=(0, 1)), []
    losses = training._losses_of
    monkeypatch.setattr(training, "_losses_of", lambda *a: held.append(losses(*a)) or held[-1])
    monkeypatch.setattr(training, "evaluate", lambda: torch.tensor([0.5, 0.0]))
    next(training.metrics())
    assert training.active == [0]
    assert training.train_step().shape == (1,)
    assert len(training.model.embedding) == len(training.optimizer.param_groups[0]["params"][0])


@pytest.mark.parametrize("memory", [MemoryConfig(), MEMORIES[5], UPDATE_RULE_MEMORIES[1]], ids=str)
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path, memory, monkeypatch):
    config = small(memory, solved_loss=1e-9)
    whole, first, second = (RetrievalTraining(config, seeds=(3, 4)) for _ in range(3))
    for training in (whole, first, second):  # seed 3 has ended before the run is stopped
        add = fast_weights._Seed.add

        def ends_early(seed, step, loss, config, add=add):
            add(seed, step, loss, config)
            if seed.seed == 3 and step == 5:
                seed.outcome, seed.reason = "ok", "no progress"

        monkeypatch.setattr(fast_weights._Seed, "add", ends_early)
        if training is whole:
            list(training.metrics())
        elif training is first:
            stopped = list(training.metrics(lambda: first.step == 12))
            assert stopped[-1].outcomes == ("ok", "interrupted")
            first.save(tmp_path / "run.pt")
        else:
            second.load(tmp_path / "run.pt")
            list(second.metrics())
        monkeypatch.setattr(fast_weights._Seed, "add", add)
    assert [vars(s) for s in second.seeds] == [vars(s) for s in whole.seeds]
    assert whole.seeds[1].steps == [5, 10, 15, 20]


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    config = small(MemoryConfig())
    RetrievalTraining(config, seeds=(0,)).save(tmp_path / "run.pt")
    with pytest.raises(ValueError, match="another config or seeds"):
        RetrievalTraining(config, seeds=(1,)).load(tmp_path / "run.pt")
    (tmp_path / "torn.pt").write_bytes(b"no")
    with pytest.raises(ValueError, match="no checkpoint"):
        RetrievalTraining(config, seeds=(0,)).load(tmp_path / "torn.pt")


# Recording


def test_a_stopped_recording_continues_and_each_seed_has_a_row(data, cache):
    job = RetrievalJob(config=small(MemoryConfig()), seeds=(0, 1))
    experiment = Experiment(name="tiny", title="", jobs=lambda scale: [job])
    seen = []
    rows = list(
        record(
            experiment,
            "smoke",
            device="cpu",
            stop=lambda: len(seen) == 2,
            watch=lambda glimpse: glimpse.metrics and seen.append(glimpse.metrics),
        )
    )
    assert [row["outcome"] for row in rows] == ["interrupted"] * 2
    assert len(list(cache.glob("checkpoints/**/*.pt"))) == 1
    rows = list(record(experiment, "smoke", device="cpu"))
    assert [(row["seed"], row["outcome"]) for row in rows] == [(0, "ok"), (1, "ok")]
    assert not list(cache.glob("checkpoints/**/*.pt"))
    assert rows == latest(recorded_rows("tiny"))
    assert list(record(experiment, "smoke", device="cpu")) == []
    expected = RetrievalTraining(job.config, seeds=job.seeds)
    list(expected.metrics())
    assert [row["curve"]["loss"] for row in rows] == [s.losses for s in expected.seeds]


@pytest.mark.parametrize("scale", ["laptop", "paper"])
@pytest.mark.parametrize("name, memories", [("capacity", 8), ("update_rules", 7)])
def test_the_grid_is_that_of_the_paper(name, memories, scale):
    jobs = EXPERIMENTS[name].jobs(scale)
    last = 600 if name == "capacity" else 200
    found, half = {}, []
    for job in jobs:
        if job.config.eval_half_length:
            half.append((job.config.model, job.config.task.n_keys, len(job.seeds)))
        else:
            found.setdefault(job.config.model, []).append(job.config.task.n_keys)
        assert job.config.task.with_replacement == (name == "update_rules")
        assert job.config.n_steps == 100_000 and job.config.eval_sequences == 20
        fwm_of_tanh = job.config.model.published_name == "tanh_fwm"
        options = (1e-4, 128) if fwm_of_tanh else (1e-3, 32)
        assert (job.config.lr, job.config.batch_size) == options
    assert len(found) == memories
    for keys in map(sorted, found.values()):
        assert (keys[0], keys[-1]) == (20, last) and len(set(keys)) == len(keys)
        most = 40 if scale == "laptop" else 20
        assert all(b - a <= most for a, b in zip(keys[:-1], keys[1:], strict=True))
        assert {n for n in (60, 100, 200, 300, 400, 500) if n <= last} <= set(keys)
    coarse = {job.config.task.n_keys for job in jobs if len(job.seeds) >= 3}
    assert {20, 100, 200} <= coarse and last in coarse
    rules = [] if name == "capacity" else UPDATE_RULE_MEMORIES[:4]
    assert half == [(model, n, 3) for n in (20, 60, 100, 200, 80, 120) for model in rules]


def test_without_the_guard_features_that_are_all_0_end_a_run_as_published():
    """Those of FAVOR+ are for long keys, and the published code divides them by their sum."""
    memory = MemoryConfig(
        attention="performer",
        options=PerformerAttention.Options(n_directions=64),
        update_rule="delta",
    )
    outcomes = []
    for guarded in (True, False):
        config = small(replace(memory, guarded=guarded), n_steps=1, eval_every=1)
        training = RetrievalTraining(config, seeds=(0,))
        with torch.no_grad():
            training.model.key_bias += 100  # exp(ω·k - |k|² / 2) is 0, whatever ω
        outcomes += [next(training.metrics()).outcomes]
    assert outcomes == [("ok",), ("diverged",)]


@every_memory
def test_without_the_guard_memories_whose_features_are_not_0_read_the_same(memory):
    if memory.update_rule != "delta" or memory.attention == "performer":
        pytest.skip("has no guard")
    training, batch, directions = drawn(small(memory))
    expected = training.model(batch, directions)
    training.model.config = replace(memory, guarded=False)
    actual = training.model(batch, directions)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
