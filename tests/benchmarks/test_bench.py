"""The bench: its ratios, targets and tables, and that peers compute what is computed here."""

import importlib.util
import math
from dataclasses import replace
from functools import partial
from statistics import median

import pytest
import torch

from benchmarks import comparison, peers
from benchmarks import run as bench
from benchmarks.comparison import (
    CROSSOVER,
    SHARE,
    TENSORS,
    TIMES,
    Contender,
    Race,
    Run,
    Setting,
    latest_figures,
    table,
)
from benchmarks.peers import FAST_TRANSFORMERS, FLASH_LINEAR
from benchmarks.run import FULL, FULL_CUDA, GROUPS, TARGETS, Scale, bench_table, run_bench
from replib.attention.delta import delta_retrieve
from replib.kernels.delta import cpu as delta_cpu
from replib.kernels.linear import cpu
from replib.kernels.linear import torch as torch_chunked
from replib.lab import provenance, store, timing
from replib.models import CausalTransformer, TransformerConfig

TINY = Scale(
    name="tiny",
    batch_size=2,
    n_heads=2,
    head_dims=(16,),
    lengths=(8, 16, 24, 40),
    longest_weights=16,
    memory_len=64,
    not_causal_len=24,
    last_read=bench.delta_sizes(2, 1, 8, 16, 12),
    all_reads=bench.delta_sizes(2, 2, 16, 16, 16),
    keys_once=8,
    keys_again=8,
    decoding_batches=(1, 2),
    position=16,
    copy_batch=2,
    copy_len=16,
    n_layers=1,
    n_rounds=3,
    seconds=0.2,
    long_seconds=0.2,
    loop_seconds=0.2,
)
HAS_FAST_TRANSFORMERS = importlib.util.find_spec("fast_transformers") is not None
with_fast_transformers = pytest.mark.skipif(
    not HAS_FAST_TRANSFORMERS, reason="fast-transformers is not installed"
)


def measured(*groups, **options):
    return list(run_bench(groups, **{"device": "cpu", "scale": TINY} | options))


def figures_of(rows, **wanted):
    return [
        figure
        for figure in latest_figures(rows)
        if all(figure[name] == value for name, value in wanted.items())
    ]


# Rows


@pytest.mark.slow
@pytest.mark.parametrize("group", GROUPS)
def test_every_group_yields_rows_whose_ratios_follow_from_their_samples(group):
    rows = measured(group)
    assert rows
    for row in rows:
        samples, figures = row["summary"]["time_ms_samples"], row["summary"]["figures"]
        told = [one for one in figures if one["value"] is not None]
        for one in told:
            if one["unit"] == TIMES:
                pairs = zip(samples[one["against"]], samples[one["ours"]], strict=True)
                assert one["value"] == pytest.approx(median(a / b for a, b in pairs), rel=2e-3)
            assert one["low"] <= one["value"] <= (one["high"] or math.inf)
        for one in (one for one in figures if one["value"] is None):
            told_why = any(x in one["detail"] for x in ("not installed", "not run"))
            assert told_why or one["unit"] == CROSSOVER
        assert row["scale"] == "tiny" and row["outcome"] == ("ok" if told else "interrupted")
    assert group == "training" or any(one["value"] for one in figures_of(rows))


def test_a_ratio_is_of_two_times_of_one_round():
    race = Race({"slow": [8.0, 100.0, 4.0], "fast": [2.0, 10.0, 4.0]}, {})
    assert race.ratios("fast", "slow") == [4.0, 10.0, 1.0]
    assert race.ratios("slow", "fast") == [0.25, 0.1, 1.0]


def test_rows_are_stored_and_read_back_as_they_were_told(data):
    rows = [row | {"scale": "full"} for row in measured("not_causal")]
    for row in rows:
        store.append("bench", row)
    assert store.read_rows("bench") == rows


def test_the_recorded_table_holds_what_has_a_target(data, pretended):
    rows = pretended(FULL, "cpu")
    for row in rows:
        store.append("bench", row)
    told = bench.recorded_table()
    assert told.startswith(f"**{rows[0]['provenance']['device_name']}**")
    aimed = [one for one in latest_figures(rows) if one["target"] is not None]
    assert told.endswith(table(aimed)) and len(aimed) > 30


def test_nothing_recorded_is_said(data):
    assert "make bench" in bench.recorded_table()


def test_a_row_names_the_versions_of_what_it_was_measured_with():
    (row,) = measured("not_causal")
    assert row["provenance"]["torch"] == torch.__version__
    assert ("pytorch-fast-transformers" in row["summary"]["versions"]) == HAS_FAST_TRANSFORMERS


def test_told_to_stop_it_yields_no_further_row():
    assert measured("delta", stop=lambda: True) == []
    rows = []
    for row in run_bench(["delta"], device="cpu", scale=TINY, stop=lambda: bool(rows)):
        rows.append(row)
    assert [row["config"]["work"] for row in rows] == [bench.LAST_READ]


def test_an_unknown_group_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match="'casual': use causal, memory, not_causal"):
        run_bench(["casual"], device="cpu")


# Trouble


@pytest.mark.slow
def test_a_peer_that_is_not_installed_is_told_with_the_remedy_and_the_others_go_on(monkeypatch):
    monkeypatch.setattr(peers, "find_spec", lambda package: None)
    rows, told = [], "fast-transformers not installed: see docs/benchmarks.md"
    for group in GROUPS:
        rows += (found := measured(group))
        alone = figures_of(found, against=FAST_TRANSFORMERS) + figures_of(
            found, ours=FAST_TRANSFORMERS
        )
        assert {(one["value"], one["met"]) for one in alone} <= {(None, None)}
        assert all(told in one["detail"] for one in alone)
        assert (not alone) == (group in ("delta", "retrieval"))
    assert figures_of(rows, ours="linear cpu", against=bench.FUSED)[0]["value"] > 0
    assert figures_of(rows, ours="linear", against=bench.KV_CACHE)[0]["value"] > 0
    assert bench_table(rows).count(told) == 1


@pytest.mark.parametrize(
    "error, told",
    [
        (RuntimeError("no such argument\nand more"), "failed: RuntimeError: no such argument"),
        (ImportError("undefined symbol"), "failed: ImportError: undefined symbol"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out of memory: Default"),
    ],
)
@pytest.mark.parametrize("healthy_calls", [0, 4])
def test_a_peer_that_fails_is_told_and_stops_nobody_else(monkeypatch, error, told, healthy_calls):
    calls = []

    def attend(q, k, v, causal):
        calls.append(1)
        if len(calls) > healthy_calls:
            raise error
        return v * 1 + (q + k) * 0

    monkeypatch.setattr(peers, "require", lambda name: None)
    monkeypatch.setitem(bench.ATTENTIONS, FAST_TRANSFORMERS, attend)
    said = []
    (row,) = measured("not_causal", say=said.append)
    assert told in row["detail"] and "and more" not in row["detail"]
    assert told in said[0] and "linear cpu" in said[0]
    failed = figures_of([row], against=FAST_TRANSFORMERS)
    assert failed and all(one["value"] is None and told in one["detail"] for one in failed)
    assert all(one["value"] > 0 for one in figures_of([row], against=bench.FUSED))


@pytest.mark.slow
def test_what_would_not_fit_into_memory_is_never_begun(monkeypatch):
    monkeypatch.setattr(timing, "available_memory_bytes", lambda device: 1000)
    monkeypatch.setattr(peers, "published_delta_loop", lambda *inputs: pytest.fail("called"))
    rows = measured("causal") + measured("delta")
    for against in (bench.TEXTBOOK, bench.PUBLISHED_LOOP, bench.TUNED_LOOP):
        found = figures_of(rows, against=against)
        assert found and all("out of memory: needs about" in one["detail"] for one in found)
    # Whether the lines cross at these sizes is for the clock to say, and not asked.
    others = figures_of(rows, ours="linear cpu", against=bench.FUSED, unit=TIMES)
    assert others and all(one["value"] for one in others)


def test_a_contender_that_failed_is_not_called_again():
    calls = []

    def fail():
        calls.append(1)
        raise ValueError("once")

    contender = Contender(lambda: fail, torch.device("cpu"))
    contender()
    contender()
    assert calls == [1] and contender.trouble == "failed: ValueError: once"


# Figures


def test_targets_are_lower_bounds_of_speed_and_upper_bounds_of_memory_and_crossovers():
    setting = Setting(work="w", batch_size=1, n_heads=1, seq_len=256, head_dim=8)
    limits = {TIMES: 2.0, TENSORS: 4.0, CROSSOVER: 64.0}
    targets = [comparison.Target("w", "a", "b", unit, limit) for unit, limit in limits.items()]
    run = Run(device=torch.device("cpu"), scale="", n_rounds=1, targets=targets)

    def met(unit, value, setting=setting):
        return run.figure(setting, "a", "b", unit, [value])["met"]

    for unit, limit in limits.items():
        assert met(unit, limit) is True
        assert met(unit, limit * 1.01) is (unit == TIMES)
        assert met(unit, limit * 0.99) is (unit != TIMES)
    assert met(TIMES, 5.0, replace(setting, work="other")) is None
    assert run.figure(setting, "a", "b", TIMES, [], "missing")["met"] is None


def test_a_figure_is_the_median_with_quartiles():
    setting = Setting(work="w", batch_size=1, n_heads=1, head_dim=8)
    run = Run(device=torch.device("cpu"), scale="", n_rounds=1, targets=[])
    figure = run.figure(setting, "a", "b", TIMES, [5.0, 1.0, 4.0, 2.0, 3.0])
    assert [figure[name] for name in ("low", "value", "high")] == [2.0, 3.0, 4.0]


@pytest.fixture
def pretended(monkeypatch):
    """All groups at their full sizes with times that are formulas, and nothing computed."""

    def time_ms(setting, name):
        n = setting.seq_len
        if name == "linear cpu":
            return n / 100
        if name == bench.FUSED:
            return n * n / 100 / 150  # crosses linear cpu at N = 150
        if name == bench.TEXTBOOK:
            return n / 20
        return {bench.MATRIX_PRODUCT: 20.0, bench.COPY: 1.0}.get(name, n / 10)

    def race(self, setting, builds, seconds):
        return Race({x: [time_ms(setting, x) * j for j in (1, 1, 1.01)] for x in builds}, {})

    class Nothing:
        trouble = None

        def __init__(self, build, device):
            pass

        def __call__(self):
            pass

        def attempt(self, function):
            return 5 * 4 * 8 * 8 * 16384 * 32  # five tensors of the size of q where D = 32

    known = provenance.provenance()
    monkeypatch.setattr(Run, "race", race)
    monkeypatch.setattr(bench, "Contender", Nothing)
    monkeypatch.setattr(store, "provenance", lambda *a, **options: known)

    def rows(scale, device_type):
        run = Run(device=torch.device(device_type), scale="full", n_rounds=3, targets=TARGETS)
        return list(bench._rows(run, scale, GROUPS.values()))

    return rows


def test_every_target_is_that_of_a_figure_at_the_full_sizes(pretended):
    pytest.importorskip("triton")  # the CUDA kernel's cost model is in its module
    used = set()
    for device_type, scale in (("cpu", FULL), ("cuda", FULL_CUDA)):
        for figure in latest_figures(pretended(scale, device_type)):
            named = (figure["ours"], figure["against"], figure["unit"], device_type)
            fit = [one for one in TARGETS if one.is_for(figure["setting"], *named)]
            assert len(fit) <= 1
            assert figure["target"] == (fit[0].limit if fit else None)
            used.update(map(TARGETS.index, fit))
    assert used == set(range(len(TARGETS)))


def test_crossovers_shares_and_memory_follow_from_times_and_bytes(pretended):
    rows = pretended(replace(FULL, head_dims=(32,)), "cpu")
    backward = Setting(work=bench.BACKWARD, batch_size=8, n_heads=8, head_dim=32)
    named = {"ours": "linear cpu", "against": bench.FUSED, "setting": backward}
    (crossing,) = figures_of(rows, unit=CROSSOVER, **named)
    assert crossing["value"] == pytest.approx(150, rel=0.02) and crossing["met"] is False
    (never,) = figures_of(rows, **named | {"ours": bench.PLAIN, "against": bench.TEXTBOOK})
    assert never["value"] is None and "never faster than softmax textbook" in never["detail"]
    for name, model, c, ms in (
        ("linear cpu", cpu, cpu.C, 40.96),
        ("linear torch", torch_chunked, torch_chunked.SHORT_CHUNK_LEN, 409.6),
    ):
        found = partial(figures_of, rows, unit=SHARE, ours=name)
        (share,) = found(setting=replace(backward, seq_len=4096), against=bench.MATRIX_PRODUCT)
        operations = sum(model.operations_per_token(32, 32, c, x) for x in (False, True))
        rate = 64 * 4096 * operations / ms
        assert share["value"] == pytest.approx(rate / (2 * 1024**3 / 20), rel=1e-3)
        (share,) = found(setting=replace(backward, seq_len=4096), against=bench.COPY)
        rate = 64 * 4096 * sum(model.bytes_per_token(32, 32, 4, x) for x in (False, True)) / ms
        assert share["value"] == pytest.approx(rate / (2 * bench.COPIED_BYTES / 1), rel=1e-3)
    (share,) = figures_of(rows, unit=SHARE, ours=bench.DELTA, against=bench.MATRIX_PRODUCT)
    sizes = share["setting"]
    assert (sizes.seq_len, sizes.head_dim, sizes.value_dim) == (2048, 64, 64)
    operations = sum(delta_cpu.operations_per_token(64, 64, backward=x) for x in (False, True))
    times = [one["time_ms_samples"] for one in (row["summary"] for row in rows)]
    (times,) = [one for one in times if bench.DELTA in one and bench.MATRIX_PRODUCT in one]
    per_ms = 64 * 2048 * operations / times[bench.DELTA][0]
    best = 2 * 1024**3 / times[bench.MATRIX_PRODUCT][0]
    assert share["value"] == pytest.approx(per_ms / best, rel=1e-3)
    (tensors,) = figures_of(rows, unit=TENSORS, ours="linear cpu")
    assert tensors["value"] == 5 and tensors["met"] is False


def test_a_share_is_of_the_best_rate_of_the_race_for_one_that_was_disturbed_is_not_the_machine():
    run = Run(device=torch.device("cpu"), scale="full", n_rounds=3, targets=TARGETS)
    setting = Setting(work="work", batch_size=1, n_heads=1, seq_len=10, head_dim=16)
    race = Race({"ours": [20.0, 20.0, 25.0], bench.COPY: [1.0, 9.0, 9.0]}, {})
    share = bench._share(run, setting, race, "ours", bench.COPY, 0.1)
    assert (share["value"], share["low"]) == pytest.approx((0.05, 0.045))


def test_a_missed_target_tells_where_the_time_goes():
    a, b = torch.randn(300, 300), torch.randn(300)

    def slow():
        return (a @ a @ a) + b

    target = bench.Target("work", "ours", "theirs", TIMES, 1e9)
    run = Run(device=torch.device("cpu"), scale="full", n_rounds=3, targets=[target])
    setting = Setting(work="work", batch_size=1, n_heads=1, seq_len=10, head_dim=16)
    race = run.race(setting, {"ours": lambda: slow, "theirs": lambda: slow}, 1.0)
    row = run.row(setting, [run.ratio(setting, race, "ours", "theirs")], race)
    shares = row["summary"]["operators"]["ours"]
    assert next(iter(shares)) == "mm" and 0.5 < sum(shares.values()) <= 1.01
    assert "The time of ours: work, B 1 H 1 N 10 D 16 is of mm" in bench_table([row])
    met = row["summary"]["figures"][0] | {"met": True}
    row["summary"]["figures"] = [met]
    assert "The time of" not in bench_table([row])


def test_a_figure_without_a_value_does_not_take_the_place_of_one_with_a_value(monkeypatch):
    first = measured("not_causal")
    monkeypatch.setitem(bench.ATTENTIONS, bench.FUSED, None)
    second = measured("not_causal")
    before, after = (figures_of(rows, against=bench.FUSED) for rows in (first, first + second))
    assert before == after and all(one["value"] for one in after)
    ours = {"ours": "linear torch", "against": FAST_TRANSFORMERS}
    assert figures_of(first + second, **ours) == figures_of(second, **ours)


# Tables


def test_a_table_has_aligned_columns_and_says_what_was_met():
    setting = Setting(work="work", batch_size=8, n_heads=8, seq_len=256, head_dim=32)
    base = {"setting": setting, "ours": "a", "against": "b", "unit": TIMES, "detail": None}
    base |= {"value": 3.456, "low": 3.0, "high": 4.0, "target": 3.0, "met": True}
    missing = {"value": None, "low": None, "high": None, "met": None, "detail": "b not installed"}
    crossing = {"unit": CROSSOVER, "value": 70.4, "high": math.inf, "target": 64, "met": False}
    lines = table([base, base | missing, base | crossing]).split("\n")
    assert lines[2].startswith("| a: work, B 8 H 8 N 256 D 32 | b ")
    assert [cell.strip() for cell in lines[2].split("|")[3:6]] == [
        "3.46 [3.00, 4.00]",
        "≥ 3",
        "yes",
    ]
    assert [cell.strip() for cell in lines[3].split("|")[3:6]] == ["–", "≥ 3", ""]
    assert [cell.strip() for cell in lines[4].split("|")[3:6]] == [
        "N = 70 [3, never]",
        "≤ 64",
        "no",
    ]
    assert len({len(line) for line in lines[:5]}) == 1
    assert lines[5:] == ["", "b not installed"]


def test_of_causal_attention_only_ratios_with_a_target_are_shown(pretended):
    rows = pretended(FULL, "cpu")
    lines = [line for line in bench_table(rows).split("\n") if line.startswith("|")]
    shown = [line for line in lines if ": causal, forward" in line]
    ratios = [line for line in shown if not any(x in line for x in ("N =", "rate", "| –"))]
    assert ratios and all("≥" in line for line in ratios)
    assert any("N 256" in line and FAST_TRANSFORMERS in line for line in ratios)


# Peers


def random(*shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=dtype)


@with_fast_transformers
@pytest.mark.parametrize("causal", [True, False])
def test_fast_transformers_computes_the_same_attention_and_gradient(causal):
    results = []
    for name in (FAST_TRANSFORMERS, bench.PLAIN):
        q, k, v, grad_y = (random(2, 3, 33, 16, seed=seed) for seed in range(4))
        inputs = [x.requires_grad_() for x in (q, k, v)]
        y = bench.ATTENTIONS[name](*inputs, causal=causal)
        results.append((y, *torch.autograd.grad(y, inputs, grad_y)))
    for theirs, ours in zip(*results, strict=True):
        torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)


@with_fast_transformers
def test_fast_transformers_encoder_decodes_as_our_model_does():
    config = TransformerConfig(n_layers=2, kernel="torch", dropout=0.0)
    model = CausalTransformer(config, vocab_size=11, max_len=8).eval()
    tokens = torch.randint(11, (3, 8), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        encoder, state = peers.fast_transformers_encoder(model).eval(), None
        expected = model(tokens)
        for i in range(8):
            x, state = encoder(model.embedding(tokens[:, i : i + 1], first=i)[:, 0], state)
            torch.testing.assert_close(model.head(x), expected[:, i], rtol=1e-4, atol=1e-4)


def test_a_step_in_bf16_is_not_run_where_its_products_are_slow(monkeypatch):
    monkeypatch.setattr(bench, "_bfloat16_slowdown", lambda device: 40.0)
    (row,) = measured("training")
    assert set(row["summary"]["time_ms_samples"]) <= {bench.LINEAR, FAST_TRANSFORMERS}
    for one in figures_of([row], ours=bench.LINEAR + bench.BF16):
        assert one["value"] is None
        assert "not run: products in bfloat16 take 40 times those in float32" in one["detail"]


@with_fast_transformers
@pytest.mark.parametrize("precision, tolerance", [("float32", 1e-4), ("bf16", 1e-2)])
def test_a_step_with_fast_transformers_attention_is_the_same_step(
    precision, tolerance, monkeypatch
):
    monkeypatch.setattr(bench, "_bfloat16_slowdown", lambda device: 1.0)
    run = Run(device=torch.device("cpu"), scale="", n_rounds=1, targets=[])
    losses = []
    for name in (bench.LINEAR, FAST_TRANSFORMERS):
        step = bench._training_step(run, TINY, name, precision)
        losses.append([step().item() for _ in range(3)])
    assert losses[0] == pytest.approx(losses[1], rel=tolerance)
    assert losses[0][0] != losses[0][1]


def test_the_published_loop_reads_what_the_delta_rule_reads():
    b, h, n, d, m = 2, 1, 37, 8, 5
    q, k, v = (random(b, h, *x, dtype=torch.float64) for x in ((1, d), (n, d), (n, m)))
    k = torch.nn.functional.normalize(k, dim=-1)
    beta = torch.sigmoid(random(b, h, n, dtype=torch.float64))
    results = []
    for function in (peers.published_delta_loop, delta_retrieve):
        inputs = [x.clone().requires_grad_() for x in (q, k, v, beta)]
        y = function(*inputs)
        results.append((y, *torch.autograd.grad(y.sum(), inputs)))
    for theirs, ours in zip(*results, strict=True):
        torch.testing.assert_close(theirs, ours, rtol=1e-9, atol=1e-9)


@pytest.mark.skipif(
    not torch.cuda.is_available() or importlib.util.find_spec("fla") is None,
    reason="flash-linear-attention or a CUDA device is missing",
)
def test_flash_linear_attention_computes_the_same_attention_and_gradient():
    results = []
    for name in (FLASH_LINEAR, bench.PLAIN):
        q, k, v, grad_y = (random(2, 3, 130, 32, seed=seed).cuda() for seed in range(4))
        inputs = [x.requires_grad_() for x in (q, k, v)]
        y = bench.ATTENTIONS[name](*inputs, causal=True)
        results.append((y, *torch.autograd.grad(y, inputs, grad_y)))
    for theirs, ours in zip(*results, strict=True):
        torch.testing.assert_close(theirs, ours, rtol=1e-2, atol=1e-2)  # TF32
