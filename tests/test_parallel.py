"""Sequences over ranks: what parts compute together is what one device computes."""

import subprocess
import sys
from itertools import pairwise

import parallel_cases
import pytest
import torch
from parallel_cases import GROUPS, SIZE, TASK, N, model_and_batch, second_derivatives, tensors

from replib.attention import ATTENTION
from replib.attention.feature_maps import feature_map_named
from replib.models import CausalTransformer, EncoderDecoder, TransformerConfig
from replib.parallel import (
    WAYS,
    Effect,
    SequenceParallel,
    VirtualRanks,
    attend,
    cost,
    local_state,
    merge,
    output,
    processes,
    run_processes,
)
from replib.parallel.model import SUMS, WRITES
from replib.parallel.ranks import boundaries, states_before

MECHANISMS = (*SUMS, *WRITES)


def close(x, y):
    torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-10)


def of_one_device(name):
    """y and the gradients of q, k and v, without ranks."""
    mechanism, *qkv, w = tensors(name)
    qkv = [x.requires_grad_() for x in qkv]
    y = mechanism(*qkv)
    return y.detach(), torch.autograd.grad((y * w).sum(), qkv)


@pytest.mark.parametrize("size", (1, 2, 4, N))
@pytest.mark.parametrize("name", MECHANISMS)
def test_parts_together_are_attention_of_one_device(name, size):
    mechanism, *qkv, w = tensors(name)
    qkv = [x.requires_grad_() for x in qkv]
    y = attend(mechanism, *qkv, VirtualRanks(size))
    expected, gradients = of_one_device(name)
    close(y.detach(), expected)
    close(torch.autograd.grad((y * w).sum(), qkv), gradients)


@pytest.mark.parametrize("size", (1, 2, 4))
@pytest.mark.parametrize("name", MECHANISMS)
def test_a_model_over_ranks_has_the_loss_and_gradients_of_one_device(name, size):
    expected, gradients = model_of_one_device(name)
    model, batch = model_and_batch(name)
    parallel = SequenceParallel(model, VirtualRanks(size))
    loss = parallel.loss(parallel(*batch.inputs), batch.targets, batch.in_loss)
    loss.backward()
    parallel.sum_gradients()
    # The loss is taken in float32, as in training on one device.
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(
        [p.grad for p in model.parameters()], gradients, rtol=1e-5, atol=1e-8
    )


def model_of_one_device(name):
    model, batch = model_and_batch(name)
    loss = TASK.loss(model(*batch.inputs), batch)
    loss.backward()
    return loss.item(), [p.grad for p in model.parameters()]


@pytest.mark.parametrize("name", MECHANISMS)
def test_logits_over_ranks_are_those_of_one_device(name):
    model, batch = model_and_batch(name)
    with torch.no_grad():
        close(SequenceParallel(model, VirtualRanks(3))(*batch.inputs), model(*batch.inputs))


def features(name, n=N, seed=1):
    """Features of queries and keys that are not negative, values, and the strengths of writes."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (
        torch.rand(2, GROUPS, n, size, generator=generator, dtype=torch.float64)
        for size in (SIZE, SIZE, SIZE + 1)
    )
    beta = torch.rand(2, GROUPS, n, generator=generator, dtype=torch.float64)
    return q, k, v, *((beta,) if name == "delta" else ())


@pytest.mark.parametrize("rule", ("sum", "delta"))
def test_a_merged_effect_is_that_of_both_parts(rule):
    _, *written = features(rule)
    parts = [local_state(*(x[:, :, span] for x in written)) for span in (slice(20), slice(20, N))]
    merged, whole = merge(*parts), local_state(*written)
    close(merged.write, whole.write)
    if rule == "delta":
        close(merged.keep, whole.keep)
    else:
        assert merged.keep is whole.keep is None


@pytest.mark.parametrize("rule", ("sum", "delta"))
def test_merging_is_associative(rule):
    a, b, c = (local_state(*features(rule, seed=seed)[1:]) for seed in (1, 2, 3))
    for x, y in zip(merge(merge(a, b), c), merge(a, merge(b, c)), strict=True):
        if x is not None:
            close(x, y)


def test_a_map_that_keeps_all_merges_with_one_that_does_not():
    everything = Effect(None, torch.ones(1, 1, 2, 3))
    some = Effect(torch.eye(2)[None, None] / 2, torch.zeros(1, 1, 2, 3))
    close(merge(everything, some).write, torch.full((1, 1, 2, 3), 0.5))
    close(merge(some, everything).write, torch.ones(1, 1, 2, 3))
    assert merge(everything, everything).keep is None
    for pair in ((everything, some), (some, everything)):
        close(merge(*pair).keep, some.keep)


def test_what_delta_writes_do_is_the_product_of_their_transitions():
    _, k, v, beta = features("delta", n=9)
    keep, state = torch.eye(SIZE, dtype=torch.float64), torch.zeros(SIZE, SIZE + 1).double()
    for key, value, strength in zip(k[0, 0], v[0, 0], beta[0, 0], strict=True):
        step = torch.eye(SIZE).double() - strength * torch.outer(key, key)
        keep, state = step @ keep, step @ state + strength * torch.outer(key, value)
    effect = local_state(k, v, beta)
    close(effect.keep[0, 0], keep)
    close(effect.write[0, 0], state)


@pytest.mark.parametrize("name", MECHANISMS)
def test_a_state_and_its_part_take_a_state_where_steps_do(name):
    mechanism, q, k, v, _ = tensors(name)
    state = mechanism.init_state(2, GROUPS, SIZE, v.shape[-1], dtype=torch.float64)
    with torch.no_grad():
        y, after = mechanism.prefill(state, q, k, v)
        _, before = mechanism.prefill(state, *(x[:, :, :20] for x in (q, k, v)))
        if name in WRITES:
            q, k, v, *beta = mechanism.writes(q, k, v, None, causal=True)
            before, after, options = before.s, after.s, {}
        else:
            (q, k), beta = mechanism.features(q, k), []
            before, after = (torch.cat([s, z.unsqueeze(-1)], -1) for s, z in (before, after))
            options = {"eps": mechanism.eps}
        late = [x[:, :, 20:] for x in (k, v, *beta)]
        close(local_state(*late).on(before), after)
        close(output(before, q[:, :, 20:], *late, **options), y[:, :, 20:])


def test_a_feature_that_no_key_had_reads_nothing():
    before = torch.zeros(1, 1, 2, 3).double()
    before[0, 0, 0] = torch.tensor([2.0, 4.0, 2.0])  # values 1 and 2, seen with a weight of 2
    q, k, v = (torch.full((1, 1, 1, 2), x).double() for x in (1, 0, 9))
    close(output(before, q, k, v, eps=0.0), torch.tensor([[[[1.0, 2.0]]]]).double())


@pytest.mark.parametrize("scale", (1e-3, 1.0, 1e3))
def test_a_feature_map_may_be_left_to_the_kernel(scale):
    generator = torch.Generator().manual_seed(5)
    q, k, v = torch.randn(3, 1, 2, 11, 4, generator=generator, dtype=torch.float64)
    before = scale * torch.rand(1, 2, 4, 5, generator=generator, dtype=torch.float64)
    before[:, :, 0] = 0
    phi = feature_map_named("elu1")
    ready, given = output(before, phi(q), phi(k), v), output(before, q, k, v, elu1=True)
    close(given, ready)


def test_values_keep_their_dtype_and_sums_are_wide():
    _, *qkv, _ = tensors("linear")
    mechanism, (q, k, v) = ATTENTION["linear"](kernel="torch"), (x.bfloat16() for x in qkv)
    assert attend(mechanism, q, k, v, VirtualRanks(2)).dtype is torch.bfloat16
    assert local_state(k, v).write.dtype is torch.float32


@pytest.mark.parametrize("rule", ("sum", "delta"))
def test_going_back_through_a_scan_is_what_autograd_does_of_its_equations(rule):
    effects = [local_state(*features(rule, seed=seed)[1:]) for seed in range(4)]
    flat = [x.requires_grad_() for effect in effects for x in effect if x is not None]
    weights = [torch.randn_like(effect.write) for effect in effects]
    state, told = torch.zeros_like(effects[0].write), []
    for effect in effects:
        told.append(state)
        state = effect.on(state)
    ways = (told, states_before(VirtualRanks(4), effects))
    expected, found = (
        torch.autograd.grad(
            sum((s * w).sum() for s, w in zip(states, weights, strict=True)),
            flat,
            materialize_grads=True,
        )
        for states in ways
    )
    close(found, expected)


@pytest.mark.parametrize("name", ("linear", "delta"))
def test_a_gradient_over_ranks_has_the_derivatives_of_one_device(name):
    mechanism, *rest = tensors(name)
    *qkv, w = (x[:, :, :9] for x in rest)
    found = second_derivatives(lambda *x: attend(mechanism, *x, VirtualRanks(3)), qkv, w)
    close(found, second_derivatives(mechanism, qkv, w))


@pytest.mark.slow
def test_gradients_of_processes_have_the_derivatives_of_one_device():
    mechanism, *qkv, w = tensors("delta")
    found = run_processes(parallel_cases.part_of_second_derivatives, 2, "delta", timeout_s=60)
    found = [torch.cat(parts, 2) for parts in zip(*found, strict=True)]
    close(found, second_derivatives(mechanism, qkv, w))


@pytest.mark.parametrize("size", (1, 2, 5))
@pytest.mark.parametrize("name", ("linear", "delta"))
def test_bytes_sent_are_those_of_the_formula(name, size):
    ranks, (mechanism, *qkv, _) = VirtualRanks(size), tensors(name)
    y = attend(mechanism, *(x.requires_grad_() for x in qkv), ranks)
    forward = ranks.traffic.sent_bytes
    y.sum().backward()
    assert forward == cost.sent_bytes("ring", layer_of(name), size)
    assert ranks.traffic.sent_bytes == 2 * forward
    assert ranks.traffic.messages == 2 * (size - 1)


def layer_of(name):
    mechanism, _, _, v, _ = tensors(name)
    return cost.Layer(
        rule="delta" if name == "delta" else "sum",
        batch_size=2,
        n_heads=GROUPS,
        n_features=mechanism.n_features(SIZE),
        value_dim=v.shape[-1],
        itemsize=8,
    )


@pytest.mark.slow
@pytest.mark.parametrize("size", (2, 4))
def test_processes_compute_what_one_device_does(size):
    names, ways = ("linear", "delta"), tuple(WAYS)
    found = run_processes(parallel_cases.everything, size, names, ways)
    for name in names:
        y, gradients = of_one_device(name)
        loss, of_parameters = model_of_one_device(name)
        for way in ways:
            of_attention, of_model = zip(*(one[name, way] for one in found), strict=True)
            close(torch.cat([y for y, _, _ in of_attention], 2), y)
            parts = zip(*(g for _, g, _ in of_attention), strict=True)
            close([torch.cat(part, 2) for part in parts], [*gradients])
            sent = sum(traffic.sent_bytes for _, _, traffic in of_attention)
            assert sent == 2 * cost.sent_bytes(way, layer_of(name), size)
            for own, own_gradients, _ in of_model:
                assert own == pytest.approx(loss, rel=1e-6)
                torch.testing.assert_close(own_gradients, of_parameters, rtol=1e-5, atol=1e-8)


@pytest.mark.slow
def test_ranks_that_differ_are_refused_by_all():
    first, second = run_processes(parallel_cases.disagreements, 2, timeout_s=60)
    assert first == second
    q = "torch.float64 (2, 4, N, 5)"
    for said, part in zip(
        first,
        (
            f"q is {q} on rank 0 and torch.float32 (2, 4, N, 5) on rank 1; k is ",
            f"q is {q} on rank 0 and torch.float64 (1, 4, N, 5) on rank 1; k is ",
            f"q is {q} on rank 0 and {q} with gradients on rank 1; k is ",
            "attention is linear, Options() on rank 0 and relu, Options() on rank 1: use the same",
        ),
        strict=True,
    ):
        assert part in said


@pytest.mark.slow
def test_a_process_that_fails_is_told_of_and_ends_the_others():
    with pytest.raises(RuntimeError, match="rank one is unwell"):
        run_processes(parallel_cases.fails_on_the_second, 2)


@pytest.mark.slow
def test_a_process_that_ends_without_a_result_is_told_of_and_ends_the_others():
    with pytest.raises(RuntimeError, match="ranks failed; 1, exit status 0 without a result"):
        run_processes(parallel_cases.the_second_leaves, 2, timeout_s=50)


@pytest.mark.parametrize(
    "code, said",
    (
        ("os.kill(os.getpid(), 9)", r"1, ended by signal 9 \(Killed\): said nothing"),
        ("os._exit(3)", "1, exit status 3: said nothing"),
        ("os.write(2, b'caf\\xe9')", "1, exit status 0 without a result: caf\ufffd"),  # not UTF-8
    ),
)
def test_how_a_process_failed_is_told(code, said, tmp_path):
    children = []
    for rank, what in enumerate(("import time; time.sleep(60)", f"import os; {code}")):
        with (tmp_path / f"said-{rank}").open("wb") as file:
            children.append(subprocess.Popen([sys.executable, "-Sc", what], stderr=file))
    try:
        with pytest.raises(RuntimeError, match=f"ranks failed; {said}"):
            processes._wait(children, tmp_path, timeout_s=30)
    finally:
        for child in children:
            child.kill()
            child.wait()


@pytest.mark.parametrize("size", (0, -1))
def test_no_process_is_refused(size):
    with pytest.raises(ValueError, match=f"{size} ranks: use at least 1"):
        run_processes(parallel_cases.sleeps, size)


@pytest.mark.slow
def test_processes_that_take_too_long_are_ended():
    with pytest.raises(TimeoutError, match="2 ranks took longer than 1 s"):
        run_processes(parallel_cases.sleeps, 2, timeout_s=1)


@pytest.mark.parametrize("seq_len, size", ((37, 4), (4, 4), (100, 7), (9, 1)))
def test_parts_are_as_long_as_one_another_but_for_one_token(seq_len, size):
    cuts = boundaries(seq_len, size)
    lengths = [b - a for a, b in pairwise(cuts)]
    assert sum(lengths) == seq_len and len(lengths) == size
    assert min(lengths) >= 1 and max(lengths) - min(lengths) <= 1


def test_positions_go_on_over_ranks():
    model, batch = model_and_batch("linear")
    tokens = torch.ones_like(batch.inputs[0])  # which positions alone tell apart
    with torch.no_grad():
        logits = SequenceParallel(model, VirtualRanks(4))(tokens)
    close(logits, model(tokens).detach())
    assert not torch.allclose(logits[:, 0], logits[:, 10])


@pytest.mark.parametrize(
    "name, said",
    (("softmax", "softmax attention has no state of one size"), ("fwm", "use linear, relu, dpfp")),
)
def test_a_mechanism_without_a_state_to_pass_on_is_refused(name, said):
    mechanism = ATTENTION[name].for_model(n_heads=2, head_dim=4, max_len=8)
    x = torch.zeros(1, 2, 8, 4)
    with pytest.raises(ValueError, match=said):
        attend(mechanism, x, x, x, VirtualRanks(2))
    config = TransformerConfig(attention=name, n_layers=1, n_heads=2, d_model=8)
    model = CausalTransformer(config, vocab_size=3, max_len=8)
    with pytest.raises(ValueError, match=said):
        SequenceParallel(model, VirtualRanks(2))


@pytest.mark.parametrize("name", ("dpfp", "delta"))
def test_a_normalisation_over_all_tokens_is_refused(name):
    kind = ATTENTION[name]
    options = kind.Options(normalised=name == "delta")
    mechanism = kind.for_model(n_heads=2, head_dim=4, max_len=8, options=options)
    x = torch.zeros(1, 2, 8, 4)
    with pytest.raises(ValueError, match="normalised=.* is not offered over ranks"):
        attend(mechanism, x, x, x, VirtualRanks(2))


def test_what_is_not_causal_is_refused():
    mechanism, q, k, v, _ = tensors("linear")
    with pytest.raises(ValueError, match="use causal=True over ranks"):
        attend(mechanism, q, k, v, VirtualRanks(2), causal=False)
    config = TransformerConfig(n_layers=1, n_heads=2, d_model=8)
    model = EncoderDecoder(config, vocab_size=3, max_len=8)
    with pytest.raises(ValueError, match="EncoderDecoder is not causal throughout"):
        SequenceParallel(model, VirtualRanks(2))


def test_more_ranks_than_tokens_are_refused():
    mechanism, q, k, v, _ = tensors("linear")
    message = "3 tokens over 4 ranks leave a rank without one: use 1 to 3 ranks"
    with pytest.raises(ValueError, match=message):
        attend(mechanism, *(x[:, :, :3] for x in (q, k, v)), VirtualRanks(4))
    model, batch = model_and_batch("linear")
    with pytest.raises(ValueError, match=message):
        SequenceParallel(model, VirtualRanks(4))(batch.inputs[0][:, :3])
    with pytest.raises(ValueError, match="0 ranks: use at least 1"):
        VirtualRanks(0)


@pytest.mark.parametrize(
    "shapes, said",
    (
        (((2, 8, 4),) * 3, r"q has shape \(2, 8, 4\): use \(batch, heads, length, size\)"),
        (((1, 1, 2, 8, 4),) * 3, r"use \(batch, heads, length, size\)"),
        (((1, 2, 8, 4), (1, 2, 7, 4), (1, 2, 7, 4)), "8 queries over 7 keys is not defined"),
        (((1, 2, 8, 4), (1, 2, 8, 4), (1, 2, 7, 4)), "differ in batch, heads or length"),
        (((1, 2, 0, 4),) * 3, "a sequence without a token has no parts: use one token a rank"),
    ),
)
def test_shapes_that_cannot_lie_over_ranks_are_refused(shapes, said):
    with pytest.raises(ValueError, match=said):
        attend(ATTENTION["linear"](), *map(torch.zeros, shapes), VirtualRanks(2))


def test_gradients_are_summed_where_there_are_any():
    model, _ = model_and_batch("linear")
    parallel = SequenceParallel(model, VirtualRanks(2))
    with pytest.raises(ValueError, match=r"use loss.backward\(\) first"):
        parallel.sum_gradients()
    model.requires_grad_(False)
    parallel.sum_gradients()
    assert all(p.grad is None for p in model.parameters())


def test_a_sequence_longer_than_the_model_is_refused():
    model, _ = model_and_batch("linear")
    tokens = torch.zeros(1, N + 3, dtype=torch.long)
    with pytest.raises(ValueError, match="position 39 is beyond the model's 37 positions"):
        SequenceParallel(model, VirtualRanks(2))(tokens)


LAYER = cost.Layer(n_heads=1, n_features=64, value_dim=64)
LINK = cost.Link(latency_s=1e-5, bandwidth=1e9)


def test_a_state_is_as_large_as_keys_and_values_of_32_tokens():
    assert cost.same_bytes_at(LAYER, 8) == 8 * 32.5
    n = 4096
    ratio = cost.sent_bytes("softmax ring", LAYER, 8, n) / cost.sent_bytes("ring", LAYER, 8, n)
    assert ratio == pytest.approx(n / 32.5)


def test_what_a_ring_of_states_sends_does_not_depend_on_the_length():
    for scheme in ("ring", "all-gather", "all-scan"):
        assert cost.sent_bytes(scheme, LAYER, 8, 10) == cost.sent_bytes(scheme, LAYER, 8, 10**6)


def test_nothing_is_sent_from_one_rank():
    for scheme in cost.SCHEMES:
        assert cost.sent_bytes(scheme, LAYER, 1, 100) == 0
        assert cost.seconds(scheme, LAYER, 1, LINK, 100) == 0


def test_the_number_of_blocks_of_an_all_scan_is_the_best():
    k = cost.best_blocks(LAYER, 64, LINK)
    best = cost.seconds("all-scan", LAYER, 64, LINK)
    for other in range(1, 4 * k):
        hop = LINK.seconds(LAYER.state_bytes / other)
        assert best <= (64 - 2 + other) * hop * (1 + 1e-12)
    assert best < cost.seconds("ring", LAYER, 64, LINK)


def test_a_map_of_the_delta_rule_travels_whole_where_all_are_gathered():
    delta = cost.Layer(rule="delta", n_features=64, value_dim=64)
    assert delta.effect_bytes == 2 * delta.state_bytes
    with pytest.raises(ValueError, match="use sum or delta"):
        cost.Layer(rule="fwm")
    with pytest.raises(ValueError, match="use ring, all-gather, all-scan, softmax ring"):
        cost.sent_bytes("star", delta, 2)
