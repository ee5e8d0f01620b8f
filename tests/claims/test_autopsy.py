"""Each switch off is the real model; each switch on does what its sentence says."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import elu

from replib.attention import ATTENTION
from replib.claims.autopsy.broken_parts import _Altered, break_model
from replib.claims.autopsy.defects import (
    ARTICLE_LR,
    BATCH_FACTOR,
    DEFECTS,
    AutopsyConfig,
    all_defects,
    article_defects,
    followed,
)
from replib.models import EncoderDecoder, TransformerConfig
from replib.tasks import CausalCopy, SequenceCopy
from replib.training import TrainingConfig

MODEL = TransformerConfig(n_layers=4, n_heads=4, d_model=64, d_feedforward=32)
TASK = SequenceCopy(seq_len=12)
COMMON = {"task": TASK, "batch_size": 4, "n_steps": 20, "eval_every": 10, "eval_batches": 1}
KINDS = ("linear", "softmax")


def config_of(*defects, attention="linear", **changes):
    model = replace(MODEL, attention=attention, dropout=0.1)
    return AutopsyConfig(model=model, defects=defects, **COMMON | changes)


def steps_of(config, n=4):
    """The losses of some steps, and the parameters after them."""
    run = config.training(seed=3, device="cpu")
    losses = [run.train_step() for _ in range(n)]
    return torch.stack(losses), [p.detach().clone() for p in run.model.parameters()], run


def model_with(*defects, attention="linear", **sizes):
    torch.manual_seed(0)
    config = replace(MODEL, attention=attention, dropout=0.0, **sizes)
    model = EncoderDecoder(config, vocab_size=13, max_len=12).eval()
    break_model(model, defects)
    return model


def tokens(seed=0):
    batch = TASK.sample(2, torch.Generator().manual_seed(seed))
    return batch.inputs


@pytest.mark.slow
@pytest.mark.parametrize("attention", KINDS)
def test_without_a_defect_a_run_is_the_real_one_bit_for_bit(attention):
    real = TrainingConfig(model=replace(MODEL, attention=attention, dropout=0.1), **COMMON)
    losses, parameters, run = steps_of(config_of(attention=attention))
    real_losses, real_parameters, _ = steps_of(real)
    assert torch.equal(losses, real_losses)
    assert all(map(torch.equal, parameters, real_parameters))
    assert not any(isinstance(module, _Altered) for module in run.model.modules())


@pytest.mark.parametrize("name", DEFECTS)
@pytest.mark.parametrize("attention", KINDS)
def test_a_run_with_any_one_defect_trains(name, attention):
    losses, parameters, run = steps_of(config_of(name, attention=attention), n=2)
    assert losses.isfinite().all() and all(p.isfinite().all() for p in parameters)
    assert all(p.dtype == torch.float32 for p in parameters)
    loss, accuracy = run.evaluate()
    assert 0 < loss < 10 and 0 <= accuracy <= 1


@pytest.mark.slow
@pytest.mark.parametrize("attention", KINDS)
def test_a_run_with_all_defects_trains_and_measures_nats_a_token(attention):
    metrics = list(config_of(*DEFECTS, attention=attention).training(seed=0).metrics())
    assert metrics[-1].outcome == "ok" and metrics[-1].step == 20
    assert 0.5 < metrics[-1].loss < 6  # 13 classes: guessing costs 2.6, whatever the batch is


@pytest.mark.parametrize("attention", KINDS)
@pytest.mark.parametrize("defects", [(), ("leak",), ("leak", "unfused", "split_heads")])
def test_the_leak_alone_lets_a_position_see_later_tokens(attention, defects):
    model = model_with(*defects, attention=attention)
    source, target = tokens()
    changed = target.clone()
    changed[:, -1] = changed[:, -1] % 10 + 1
    before, after = model(source, target), model(source, changed)
    same = torch.allclose(before[:, :-1], after[:, :-1], atol=1e-5)
    assert same == ("leak" not in defects)


def test_what_a_decoder_follows_is_told_from_its_answers():
    class Answers(torch.nn.Module):
        def __init__(self, copies):
            super().__init__()
            self.copies = copies

        def forward(self, source, tokens):
            own = torch.cat([tokens[:, 1:], tokens[:, :1]], dim=1)
            answers = source[:, 1:] if self.copies else own
            return torch.nn.functional.one_hot(answers, 13).float()

    for copies in (True, False):
        shares = followed(Answers(copies), TASK, torch.Generator().manual_seed(0))
        assert shares[not copies] == 1.0 and 0.02 < shares[copies] < 0.2


def test_float64_begins_after_the_first_attention_and_leaves_the_parameters_alone():
    inputs = tokens()
    plain, wide = model_with(), model_with("float64")
    seen = {}

    def watch(name):
        return lambda module, args, y: seen.update({name: (args[0].dtype, y.dtype)})

    first, later = wide.encoder[0], wide.encoder[1]
    first.self_attention.to_qkv.register_forward_hook(watch("first"))
    first.self_attention.out.register_forward_hook(watch("out"))
    first.feedforward[0].register_forward_hook(watch("feedforward"))
    later.self_attention.to_qkv.register_forward_hook(watch("later"))
    y = wide(*inputs)
    assert y.dtype == torch.float64 and plain(*inputs).dtype == torch.float32
    assert seen["first"] == (torch.float32, torch.float32)
    assert {seen[name] for name in ("out", "feedforward", "later")} == {(torch.float64,) * 2}
    torch.testing.assert_close(y.float(), plain(*inputs), atol=1e-4, rtol=1e-4)
    y.sum().backward()
    assert {p.grad.dtype for p in wide.parameters() if p.grad is not None} == {torch.float32}


@pytest.mark.parametrize("attention", KINDS)
def test_heads_split_twice_mix_nothing_between_the_parts_of_a_head(attention):
    q, k, v = (
        torch.randn(2, 4, 6, 16, generator=torch.Generator().manual_seed(i)) for i in range(3)
    )
    split = model_with("split_heads", attention=attention).decoder[0].self_attention.attention
    whole = model_with(attention=attention).decoder[0].self_attention.attention
    changed = q.clone()
    changed[..., 4:] += 1  # all parts but the first of each head
    for attend, independent in ((split, True), (whole, False)):
        y, z = attend(q, k, v, causal=True), attend(changed, k, v, causal=True)
        assert torch.equal(y[..., :4], z[..., :4]) == independent
        assert not torch.allclose(y[..., 4:], z[..., 4:])
    # Each part is a head of its own.
    y = split(q, k, v, causal=True)
    part = ATTENTION[attention]()(q[..., 8:12], k[..., 8:12], v[..., 8:12], causal=True)
    torch.testing.assert_close(y[..., 8:12], part)


def test_the_state_of_a_head_split_twice_has_a_lower_rank():
    q, k, v = (
        torch.randn(1, 4, 64, 16, generator=torch.Generator().manual_seed(i)) for i in range(3)
    )
    units = torch.eye(16).expand(1, 4, 16, 16)  # values, so that outputs are the weights' rows

    def mixed(model):
        attend = model.decoder[0].self_attention.attention
        return attend(q, k[:, :, :16], units, causal=False)[0, 0]  # (N, M)

    whole, split = mixed(model_with()), mixed(model_with("split_heads"))
    assert torch.linalg.matrix_rank(whole) == 16
    assert all(torch.linalg.matrix_rank(split[:, i : i + 4]) <= 4 for i in range(0, 16, 4))


def test_half_the_encoder_is_used_and_the_rest_is_computed_for_nothing():
    source, target = tokens()
    whole, half = model_with(), model_with("reused_encoder")
    x = whole.embedding(source)
    for block in whole.encoder[:2]:
        x = block(x)
    torch.testing.assert_close(half.encode(source), whole.encoder_norm(x))
    calls = []
    half.encoder[1].block.register_forward_hook(lambda *_: calls.append(1))
    half(source, target).sum().backward()
    assert len(calls) == 3  # its own application, and two whose results are dropped


def test_adam_has_the_articles_constant_rate_and_no_decay():
    run = config_of("adam", lr=5e-3, schedule="cosine", warmup_steps=5).training()
    (group,) = run.optimizer.param_groups
    assert group["weight_decay"] == 0 and type(run.optimizer).__name__ == "AdamW"
    assert {run.config.lr_at(step) for step in range(20)} == {ARTICLE_LR}


def test_a_summed_loss_has_gradients_as_many_times_larger_as_the_batch():
    broken, mended = (
        config.training(seed=1)
        for config in (config_of("batch_32"), config_of(batch_size=4 * BATCH_FACTOR))
    )
    assert broken.config.batch_size == 16
    batch = TASK.sample(16, torch.Generator().manual_seed(0))
    for run in (broken, mended):
        run.model.eval()
        TASK.loss(run.model(*batch.inputs), batch).backward()
    pairs = zip(broken.model.parameters(), mended.model.parameters(), strict=True)
    for one, other in pairs:
        if one.grad is not None:
            torch.testing.assert_close(one.grad, 16 * other.grad)


@pytest.mark.slow
def test_extra_evaluations_change_no_parameter_and_are_one_and_an_eighth_a_step():
    _, with_them, run = steps_of(config_of("extra_losses"), n=16)
    _, without, _ = steps_of(config_of(), n=16)
    assert all(map(torch.equal, with_them, without))
    calls = []
    run.model.head.register_forward_hook(lambda *_: calls.append(run.model.training))
    for _ in range(16):
        run.train_step()
    assert calls.count(True) == 16 and calls.count(False) == 18


def test_of_an_eighth_step_one_evaluation_stands_before_the_update_and_one_after():
    run = config_of("extra_losses").training(seed=0, device="cpu")
    for _ in range(7):
        run.train_step()
    weight = run.model.head.weight
    before, seen = weight.detach().clone(), []
    run.model.head.register_forward_hook(
        lambda *_: seen.append((run.model.training, torch.equal(weight, before)))
    )
    run.train_step()
    assert seen == [(False, True), (True, True), (False, False)]
    before.copy_(weight.detach())
    run.train_step()
    assert seen[3:] == [(True, True), (False, False)]


@pytest.mark.parametrize("positions", ["added", "concatenated"])
def test_the_embedding_is_divided_by_the_root_of_its_size_and_positions_are_not(positions):
    (source, _), e = tokens(), MODEL.d_model
    broken, real = (
        model_with(*defects, positions=positions).double().embedding
        for defects in (("embedding_scale",), ())
    )
    table, sinusoids = real.tokens.weight[source], real.sinusoids.double()[: source.shape[1]]
    usual, small = (table * e**0.5, table / e**0.5)
    if positions == "added":
        torch.testing.assert_close(real(source), usual + sinusoids)
        torch.testing.assert_close(broken(source), small + sinusoids)
        norms = (broken(source) - sinusoids).norm(dim=-1) / (real(source) - sinusoids).norm(dim=-1)
        torch.testing.assert_close(norms, torch.full_like(norms, 1 / e))
    else:
        torch.testing.assert_close(broken(source)[..., : e // 2], small)
        assert torch.equal(broken(source)[..., e // 2 :], real(source)[..., e // 2 :])


@pytest.mark.parametrize("positions", ["added", "concatenated"])
def test_trained_positions_start_as_sinusoids_get_gradients_and_change(positions, tmp_path):
    model = replace(MODEL, attention="softmax", positions=positions)
    config = AutopsyConfig(model=model, defects=("trained_positions", "adam"), **COMMON)
    run = config.training(seed=0, device="cpu")
    start = run.model.embedding.sinusoids.detach().clone()
    real = replace(config, defects=()).training(seed=0, device="cpu").model.embedding
    assert torch.equal(start, real.sinusoids) and not list(real.parameters())[1:]
    run.train_step()
    assert run.model.embedding.sinusoids.grad[:11].abs().sum(1).gt(0).all()
    moved = (run.model.embedding.sinusoids.detach() - start)[:11].abs().max().item()
    assert moved == pytest.approx(ARTICLE_LR, rel=0.02)  # Adam's first step, without decay
    run.save(tmp_path / "checkpoint")
    again = config.training(seed=0, device="cpu")
    again.load(tmp_path / "checkpoint")
    for one in (run, again):
        one.train_step()
    assert all(map(torch.equal, run.model.parameters(), again.model.parameters()))


def test_other_details_are_fluxs_initialisation_and_no_clip_norm_or_dropout_besides():
    run = config_of("details").training(seed=0, device="cpu")
    model = run.model
    weights = {name: one for name, one in model.named_modules() if type(one) is torch.nn.Linear}
    for module in weights.values():
        assert not module.bias.any()
        parts = module.weight.chunk(3) if module.out_features == 192 else [module.weight]
        for part in parts:
            bound = (6 / sum(part.shape)) ** 0.5
            assert 0.9 * bound < part.abs().max() <= bound
    assert type(model.norm) is type(model.encoder_norm) is torch.nn.Identity
    x = torch.ones(64, 64)
    for dropped, module in (
        (False, model.embedding.dropout),
        (False, model.decoder[0].feedforward[2]),
        (True, model.decoder[0].dropout),
    ):
        assert torch.equal(module.train()(x), x) != dropped
    run.train_step()
    plain = config_of().training(seed=0, device="cpu")
    plain.train_step()
    for one, above in ((run, True), (plain, False)):
        norms = [p.grad.norm().item() for p in one.model.parameters() if p.grad is not None]
        assert (max(norms) > 1.0001) == above


def test_with_other_details_the_decoder_is_given_the_end_token():
    seen = {}
    for defects in ((), ("details",)):
        model = model_with(*defects)
        model.decoder[0].register_forward_hook(lambda _, args, y: seen.update(n=args[0].shape[1]))
        assert model(*tokens()).shape[1] == TASK.seq_len - 1
        assert seen["n"] == TASK.seq_len - 1 + bool(defects)


def test_softmaxs_weights_are_dropped_with_other_details_in_training_alone():
    whole = model_with(attention="softmax").decoder[0].self_attention.attention
    torch.manual_seed(0)
    model = EncoderDecoder(replace(MODEL, attention="softmax"), vocab_size=13, max_len=12)
    break_model(model, ("details",))
    dropped = model.decoder[0].self_attention.attention
    q, k, v = (torch.randn(2, 4, 9, 16, dtype=torch.float64) for _ in range(3))
    for causal in (True, False):
        expected = whole(q, k, v, causal=causal)
        torch.testing.assert_close(dropped.eval()(q, k, v, causal=causal), expected)
        assert not torch.allclose(dropped.train()(q, k, v, causal=causal), expected)


def test_the_decoders_activation_alone_becomes_elu_plus_one():
    model = model_with("elu_feedforward")
    x = torch.linspace(-3, 3, 7)
    for block in model.decoder:
        torch.testing.assert_close(block.feedforward[1](x), elu(x) + 1)
    assert all(type(block.feedforward[1]) is torch.nn.ReLU for block in model.encoder)


@pytest.mark.parametrize("attention", KINDS)
@pytest.mark.parametrize("causal", [True, False])
def test_unfused_attention_computes_the_same_function(attention, causal):
    unfused = model_with("unfused", attention=attention).decoder[0].self_attention.attention
    n_keys = 9 if causal else 7
    generator = torch.Generator().manual_seed(0)
    options = {"generator": generator, "dtype": torch.float64, "requires_grad": True}
    q = torch.randn(2, 4, 9, 16, **options)
    k, v = (torch.randn(2, 4, n_keys, 16, **options) for _ in range(2))
    y, expected = (one(q, k, v, causal=causal) for one in (unfused, ATTENTION[attention]()))
    torch.testing.assert_close(y, expected)
    weight = torch.randn(y.shape, generator=generator, dtype=torch.float64)
    found, wanted = (torch.autograd.grad((one * weight).sum(), (q, k, v)) for one in (y, expected))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_the_articles_softmax_runs_had_fewer_defects_than_its_linear_runs():
    assert all_defects("linear") == tuple(DEFECTS)
    assert set(all_defects("softmax")) < set(DEFECTS)


def test_the_ablation_of_a_small_model_has_the_defects_it_was_recorded_with():
    assert article_defects("linear") == (
        *("float64", "split_heads", "leak", "reused_encoder", "adam"),
        *("batch_32", "extra_losses", "elu_feedforward", "unfused"),
    )
    assert article_defects("softmax") == ("leak", "reused_encoder", "adam", "extra_losses")


def test_defects_are_one_run_in_whatever_order_they_are_named():
    assert config_of("leak", "float64") == config_of("float64", "leak")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"defects": ("lek",)}, "defect 'lek': use each of float64, .* at most once"),
        ({"defects": ("leak", "leak")}, "at most once"),
        ({"task": CausalCopy(seq_len=16)}, "use SequenceCopy"),
    ],
)
def test_a_config_that_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        AutopsyConfig(**{"model": MODEL} | COMMON | changes)
