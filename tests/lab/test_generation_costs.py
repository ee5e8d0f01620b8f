"""Generation is measured as it is: three ways, one function, and the bytes that are there."""

import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from replib.generation import Decoder, Recompute
from replib.lab import timing
from replib.lab.runs import generation
from replib.lab.runs.generation import (
    WAYS,
    GenerationConfig,
    build_model,
    build_stepper,
    geometric_positions,
    measure_generation,
    process_bytes,
    state_bytes,
    stream_points,
    stream_positions,
)

TINY = {"n_layers": 2, "n_heads": 2, "head_dim": 8, "batch_size": 3}
N = 70  # beyond a growing cache's first capacity


def tiny(way="recurrent", **changes):
    return GenerationConfig(way=way, **TINY | {"seq_len": N} | changes)


def random_tokens(n=N, b=3):
    return torch.randint(0, 256, (b, n), generator=torch.Generator().manual_seed(0))


def logits_of(stepper, tokens):
    return torch.stack([stepper.step(token) for token in tokens.unbind(1)], dim=1)


@pytest.mark.parametrize("way", WAYS)
def test_every_way_gives_what_its_model_gives_at_once(way):
    tokens, config = random_tokens(), tiny(way, dtype="float64")
    with torch.inference_mode():
        at_once = build_model(config)(tokens)
    found = logits_of(build_stepper(config), tokens)
    torch.testing.assert_close(found, at_once, rtol=1e-9, atol=1e-9)


def test_every_way_has_the_same_weights():
    one, other = (build_model(tiny(way)).state_dict() for way in ("recurrent", "cache"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    different = build_model(tiny(), seed=1).state_dict()
    assert not torch.equal(one["head.weight"], different["head.weight"])


def test_building_a_model_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    build_model(tiny())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("way", WAYS)
def test_state_bytes_are_those_of_the_tensors(way, dtype):
    config = tiny(way, dtype=dtype)
    assert build_stepper(config).state_bytes == state_bytes(config)
    longer = replace(config, seq_len=2 * N)
    grows = 1 if way == "recurrent" else 2
    assert state_bytes(longer) == grows * state_bytes(config)


def test_the_state_of_the_papers_mnist_model_is_8_layers_of_8_heads_of_32_by_33_floats():
    assert state_bytes(GenerationConfig()) == 8 * 8 * (32 * 32 + 32) * 4
    assert state_bytes(GenerationConfig(way="cache")) == 8 * 784 * 256 * 2 * 4


@pytest.mark.parametrize("way", WAYS)
def test_a_jump_to_the_start_generates_afresh(way):
    stepper, tokens = build_stepper(tiny(way, dtype="float64")), random_tokens(9)
    first = logits_of(stepper, tokens)
    stepper.jump(0)
    assert stepper.position == 0
    torch.testing.assert_close(logits_of(stepper, tokens), first)


@pytest.mark.parametrize("way", WAYS)
def test_a_jump_stands_before_a_position_and_remembers_something(way):
    config = tiny(way, dtype="float64")
    stepper, other = build_stepper(config), build_stepper(config)
    stepper.jump(N - 1, torch.Generator().manual_seed(0))
    other.jump(N - 1, torch.Generator().manual_seed(1))
    token = random_tokens(1)[:, 0]
    one, another = stepper.step(token), other.step(token)
    assert one.isfinite().all() and not torch.equal(one, another)
    with pytest.raises(ValueError, match=f"all {N} positions are taken"):
        stepper.step(token)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("position", [-1, N + 1])
def test_a_jump_beyond_the_room_is_refused(way, position):
    with pytest.raises(ValueError, match=f"position {position}: use 0 to {N}"):
        build_stepper(tiny(way)).jump(position)


def in_fixed_shapes(config):
    """A decoder as under a CUDA graph, whose launch is played here by a call."""
    decoder = Decoder(build_model(config), config.batch_size, max_len=config.seq_len)
    with torch.inference_mode():
        decoder._start_in_fixed_shapes()
    decoder._graph = SimpleNamespace(replay=decoder._advance_in_fixed_shapes)
    return decoder


@pytest.mark.parametrize("way", ["recurrent", "cache"])
def test_the_token_at_a_position_stays_there_under_a_graph(way, monkeypatch):
    monkeypatch.setattr(generation, "build_stepper", lambda config, *_: in_fixed_shapes(config))
    work = generation._NextToken(tiny(way), torch.device("cpu"), seed=0)
    for _ in range(3):
        work()  # a cache that went on would write beyond its end
        lengths = [int(s.length) for s in work.stepper.states if hasattr(s, "length")]
        assert lengths == ([N, N] if way == "cache" else [])


def test_recompute_refuses_what_the_model_has_no_positions_for():
    with pytest.raises(ValueError, match=f"max_len {N + 1}: use 1 to {N}"):
        Recompute(build_model(tiny("recompute")), 3, max_len=N + 1)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"way": "magic"}, "unknown way 'magic': use recurrent, cache, recompute"),
        ({"span": "day"}, "unknown span 'day': use token, sequence, stream"),
        ({"dtype": "int8"}, "unknown dtype 'int8'"),
        ({"seq_len": 0}, "seq_len 0: use a whole number from 1 to"),
        ({"seq_len": 2**21}, "seq_len 2097152: use"),
        ({"seq_len": 1.5}, "seq_len 1.5"),
        ({"batch_size": True}, "batch_size True"),
        ({"batch_size": 10**9}, "batch_size 1000000000: use"),
        ({"n_layers": 0}, "n_layers 0: use 1 to"),
        ({"n_heads": 1, "head_dim": 3}, "d_model 3"),
    ],
)
def test_impossible_configs_are_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        tiny(**changes)


def test_measured_tokens_have_times_bytes_and_the_size_of_their_state():
    configs = [tiny(way) for way in WAYS]
    for config, cost in zip(configs, measure_generation(configs, n_repeats=3), strict=True):
        assert cost.config is config and cost.outcome == "ok"
        assert len(cost.time_ms) == 3 and min(cost.time_ms) > 0
        assert cost.state_bytes == state_bytes(config) == cost.summary()["state_bytes"]
        assert cost.memory_bytes > cost.state_bytes


@pytest.mark.parametrize("way", WAYS)
def test_the_token_at_a_position_is_measured_at_that_position(way, monkeypatch):
    seen = set()
    for cls in (Decoder, Recompute):
        step = cls.step

        def spy(self, token, step=step):
            lengths = {s.length for s in getattr(self, "states", ()) if hasattr(s, "length")}
            seen.add((self.position, *lengths))
            return step(self, token)

        monkeypatch.setattr(cls, "step", spy)
    next(measure_generation([tiny(way)], n_repeats=2))
    assert seen == {(N - 1, N - 1)} if way == "cache" else {(N - 1,)}


@pytest.mark.parametrize("way", WAYS)
def test_a_sequence_is_generated_whole_from_its_start(way, monkeypatch):
    positions = []
    for cls in (Decoder, Recompute):
        step = cls.step

        def spy(self, token, step=step):
            positions.append(self.position)
            return step(self, token)

        monkeypatch.setattr(cls, "step", spy)
    next(measure_generation([tiny(way, span="sequence", seq_len=9)], n_repeats=2))
    assert len(positions) >= 3 * 9  # a warm-up and two samples at least
    assert positions == list(range(9)) * (len(positions) // 9)


def test_running_out_of_memory_is_an_outcome_and_the_others_go_on(monkeypatch):
    def fail(self, token):
        raise RuntimeError("can't allocate memory: you tried to allocate 99 bytes")

    monkeypatch.setattr(Recompute, "step", fail)
    costs = {c.config.way: c for c in measure_generation([tiny(w) for w in WAYS], n_repeats=2)}
    assert [costs[way].outcome for way in WAYS] == ["ok", "ok", "out_of_memory"]
    assert "99 bytes: lower seq_len or batch_size" in costs["recompute"].detail
    assert costs["recompute"].time_ms == ()


@pytest.mark.parametrize("span", ["token", "sequence", "stream"])
def test_what_would_not_fit_is_not_tried(span, monkeypatch):
    monkeypatch.setattr(timing, "available_memory_bytes", lambda device: 10**6)
    config = tiny("cache", span=span, seq_len=2**16)
    (cost,) = measure_generation([config], n_repeats=2)
    assert cost.outcome == "out_of_memory" and "lower seq_len or batch_size" in cost.detail


def test_a_stop_before_the_start_measures_nothing():
    stop = threading.Event()
    stop.set()
    costs = list(measure_generation([tiny(), tiny(span="stream")], n_repeats=2, stop=stop.is_set))
    assert [cost.outcome for cost in costs] == ["interrupted"]


@pytest.mark.parametrize("way, constant", [("recurrent", True), ("cache", False)])
def test_a_stream_keeps_its_state_and_a_cache_doubles(way, constant):
    seen = []
    config = tiny(way, span="stream", seq_len=300)
    (cost,) = measure_generation([config], on_partial=seen.append)
    assert cost.outcome == "ok" and cost.curve["position"][-1] == 300
    assert len(cost.curve["position"]) == len(seen) == len(stream_positions(300))
    assert {partial.outcome for partial in seen} == {"interrupted"}
    kept = cost.curve["state_bytes"]
    assert kept == sorted(kept) and kept[-1] == cost.state_bytes
    if constant:
        assert set(kept) == {state_bytes(config)}
    else:
        assert kept[-1] == state_bytes(replace(config, seq_len=512))  # 64 doubled thrice
        assert len(set(kept)) == 4
    assert sum(cost.time_ms) > 0


def test_a_stopped_stream_keeps_what_it_measured():
    stop = threading.Event()
    config = tiny(span="stream", seq_len=10**6)

    def on_partial(cost):
        if cost.curve["position"][-1] >= 100:
            stop.set()

    (cost,) = measure_generation([config], stop=stop.is_set, on_partial=on_partial)
    assert cost.outcome == "interrupted"
    assert 100 <= cost.curve["position"][-1] < 10**6
    assert f"stopped after {cost.curve['position'][-1]} tokens" in cost.detail


def test_a_stream_that_runs_out_of_memory_says_so_and_keeps_its_curve(monkeypatch):
    step = Decoder.step

    def fail(self, token):
        if self.position == 50:
            raise RuntimeError("out of memory")
        return step(self, token)

    monkeypatch.setattr(Decoder, "step", fail)
    (cost,) = measure_generation([tiny("cache", span="stream", seq_len=200)])
    assert cost.outcome == "out_of_memory" and cost.curve["position"][-1] <= 50


def test_a_stream_goes_on_beyond_any_positions_of_the_model():
    model_positions = len(build_model(tiny(span="stream")).embedding.sinusoids)
    last = list(stream_points(tiny(span="stream", seq_len=200)))[-1]
    assert last["position"] == 200 > model_positions


@pytest.mark.parametrize("last", [1, 2, 3, 16, 784, 3072])
def test_positions_are_halved_down_to_the_first(last):
    positions = geometric_positions(last)
    assert positions[0] == 1 and positions[-1] == last
    assert all(b in (2 * a, 2 * a + 1) for a, b in zip(positions, positions[1:], strict=False))


@pytest.mark.parametrize("last", [1, 2, 50, 10**6])
def test_a_stream_is_looked_at_often_and_at_its_end(last):
    positions = stream_positions(last)
    assert positions[-1] == last and positions == sorted(set(positions))
    steps = [b - a for a, b in zip(positions, positions[1:], strict=False)]
    assert max(steps, default=1) <= max(1, last // 100) and len(positions) < 400


def test_process_bytes_are_those_of_the_system_or_unknown(tmp_path):
    found = process_bytes()
    assert found is None or found > 10**6
    assert process_bytes(statm=tmp_path / "missing") is None
