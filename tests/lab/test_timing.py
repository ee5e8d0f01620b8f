import functools
import itertools
import mmap
import os
import platform
import subprocess
import sys
import threading
from collections import Counter

import pytest
import torch
from choices import CAUSAL, how

from replib import device as module
from replib.attention import ATTENTION, Attention
from replib.lab import memory_use, timing
from replib.lab.run import unavailable
from replib.lab.timing import (
    TIMING_LOCK,
    Cost,
    CostConfig,
    Samples,
    interleave,
    measure_cost,
    peak_memory_bytes,
    predicted_bytes,
    tokens_batch,
)
from replib.models import TransformerConfig
from replib.tasks import CausalCopy, SequenceCopy
from replib.tasks.images import Pixels
from replib.training import TrainingConfig

ALLOCATOR_TEXT = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."


class FakeClock:
    """A perf_counter that only moves when told to."""

    def __init__(self):
        self.now_s = 0.0

    def __call__(self):
        return self.now_s

    def work(self, ms):
        self.now_s += ms / 1000


@pytest.fixture
def clock(monkeypatch):
    clock = FakeClock()
    monkeypatch.setattr(timing, "perf_counter", clock)
    return clock


class BrokenAttention(Attention):
    """Raises what it is told to at its n-th call."""

    label = "broken"
    error: Exception
    healthy_calls = 0

    def forward(self, q, k, v, *, causal=True, key_padding_mask=None):
        self.calls = getattr(self, "calls", 0) + 1
        if self.calls > type(self).healthy_calls:
            raise type(self).error
        return v * 1


@pytest.fixture
def broken(monkeypatch):
    monkeypatch.setitem(ATTENTION, "broken", BrokenAttention)
    monkeypatch.setattr(BrokenAttention, "error", RuntimeError(ALLOCATOR_TEXT), raising=False)
    monkeypatch.setattr(BrokenAttention, "healthy_calls", 0)
    return BrokenAttention


def small(attention="linear", **changes):
    return CostConfig(**{"attention": attention, "seq_len": 33, "n_heads": 2, **changes})


# Interleaving


def times_of(callables, **options):
    return {key: found.time_ms for key, found in interleave(callables, **options).items()}


def rounds_of(clock, seed, n_repeats=20):
    calls = []

    def candidate(name):
        def function():
            calls.append(name)
            clock.work(timing.LONG_CALL_MS)

        return function

    samples = times_of({name: candidate(name) for name in "abcd"}, n_repeats=n_repeats, seed=seed)
    timed = calls[4:]
    return samples, [tuple(timed[i : i + 4]) for i in range(0, len(timed), 4)]


def test_each_round_calls_every_callable_once_in_an_order_that_varies(clock):
    samples, rounds = rounds_of(clock, seed=0)
    assert len(rounds) == 20
    assert all(sorted(one) == list("abcd") for one in rounds)
    assert len(set(rounds)) > 10
    assert Counter(one[0] for one in rounds).keys() == set("abcd")
    assert {name: len(values) for name, values in samples.items()} == dict.fromkeys("abcd", 20)
    assert rounds_of(clock, seed=1)[1] == rounds_of(clock, seed=1)[1]
    assert rounds_of(clock, seed=1)[1] != rounds_of(clock, seed=2)[1]


def candidate_of(clock, calls, name, lengths_ms):
    def function():
        calls[name] += 1
        clock.work(next(lengths_ms))

    return function


def test_a_sample_is_the_time_of_one_call_without_its_warm_up(clock):
    calls = Counter()
    long = candidate_of(clock, calls, "long", itertools.chain([9000], itertools.repeat(2000)))
    assert times_of({"long": long}, n_repeats=5) == {"long": pytest.approx([2000] * 5)}
    assert calls["long"] == 1 + 5


def test_caches_are_warm_at_each_sample_of_a_short_call(clock):
    last, names = [None], {"a": 20.0, "b": 400.0}

    def candidate(name):
        def function():
            clock.work(names[name] if last[0] == name else 3 * names[name])
            last[0] = name

        return function

    samples = times_of({name: candidate(name) for name in names}, n_repeats=4)
    assert samples == {name: pytest.approx([ms] * 4) for name, ms in names.items()}


class FakeFaults:
    """A process whose freed memory stays in it until it is given back: what is called then pays
    for what it touches, as the first call does."""

    def __init__(self, clock, monkeypatch):
        self.clock, self.count, self.held, self.calls = clock, 0, 0, []
        monkeypatch.setattr(timing, "page_faults", lambda: self.count)
        monkeypatch.setattr(timing, "trim_memory", self.trim)

    def trim(self):
        self.held = 0
        self.calls.append("trimmed")

    def candidate(self, name, ms, pages, own=0, trims=False):
        """Takes `own` faults at each call, and one for each of `pages` that is not held."""

        def function():
            self.calls.append(name)
            faults = own + max(0, pages - self.held)
            self.held = max(self.held, pages)
            self.count += faults
            self.clock.work(ms + faults * timing.FAULT_MS)
            if trims:
                self.held = 0

        return function


@pytest.fixture
def faults(clock, monkeypatch):
    return FakeFaults(clock, monkeypatch)


def test_a_long_call_that_gives_memory_back_costs_the_others_nothing(faults):
    candidates = {
        "long": faults.candidate("long", 2000, 10**6, trims=True),
        "short": faults.candidate("short", 20, 8000),
        "other": faults.candidate("other", 900, 0, own=500),
    }
    found = interleave(candidates, n_repeats=5)
    assert found["short"].time_ms == pytest.approx([20] * 5)
    assert found["short"].page_faults == [0] * 5
    assert found["other"].page_faults == [500] * 5 and found["other"].own_page_faults == 500
    assert found["long"].page_faults[1:] == [10**6] * 4
    last_short = max(i for i, name in enumerate(faults.calls) if name in ("short", "other"))
    assert faults.calls[last_short + 1 :] == ["long"] * 5 + ["trimmed"]


def test_a_call_is_warmed_up_until_its_faults_are_its_own(faults):
    """Each call finds what the other one left: nothing. A second call of it is settled."""
    candidates = {
        name: faults.candidate(name, 20, 8000 * i, own=10) for i, name in enumerate("abc")
    }
    taking = candidates["b"]

    def b_after_another_gave_back():
        if faults.calls[-1] != "b":
            faults.held = 0
        taking()

    found = interleave(candidates | {"b": b_after_another_gave_back}, n_repeats=4)
    assert {key: one.page_faults for key, one in found.items()} == dict.fromkeys("abc", [10] * 4)
    for one in found.values():
        assert Cost(small(), "ok", None, tuple(one.time_ms), 0).summary()["n_disturbed"] == 0


def test_samples_with_faults_that_are_not_the_calls_own_are_marked():
    """8192 faults beside a call of 20 ms made it 1.5 times slower; beside 2 s they are nothing."""
    for time_ms, n_disturbed in ((20.0, 2), (2000.0, 0)):
        faults = (32.0, 8224.0, 32.0, 40.0, 8224.0)
        cost = Cost(small(), "ok", None, (time_ms,) * 5, 1000, faults, 32.0)
        assert cost.summary()["n_disturbed"] == n_disturbed
        assert cost.summary()["page_faults_samples"] == list(faults)
        assert cost.summary()["page_faults_own"] == 32.0


def test_measured_costs_count_the_page_faults_of_each_sample():
    (cost,) = measure_cost([small(kernel="torch")], n_repeats=3)
    assert len(cost.page_faults) == len(cost.time_ms) == 3
    assert cost.own_page_faults <= min(cost.page_faults)


@pytest.mark.skipif(memory_use.resource is None, reason="page faults are not counted here")
def test_touching_fresh_memory_is_counted_as_page_faults():
    before, n_bytes = memory_use.page_faults(), 64 * 2**20
    pages = mmap.mmap(-1, n_bytes)
    pages[:: mmap.PAGESIZE] = b"1" * (n_bytes // mmap.PAGESIZE)
    assert memory_use.page_faults() > before
    pages.close()


def test_a_callable_shorter_than_a_sample_is_repeated_within_it(clock):
    calls = Counter()
    candidates = {
        # Its first call is nearly all set-up, which must not pass for its length.
        "short": candidate_of(clock, calls, "short", itertools.chain([90], itertools.repeat(0.1))),
        "long": candidate_of(clock, calls, "long", itertools.repeat(200)),
    }
    samples = times_of(candidates, n_repeats=3)
    per_sample = timing.MIN_SAMPLE_MS / 0.1
    assert 3 * (per_sample + 1) <= calls["short"] < 3 * (per_sample + 1) + 10
    assert samples["short"] == pytest.approx([0.1] * 3)
    assert len(samples["long"]) == 3


def test_max_seconds_ends_after_a_whole_round_and_keeps_the_first(clock):
    def run(max_seconds):
        candidates = {"a": lambda: clock.work(1000), "b": lambda: clock.work(3000)}
        samples = times_of(candidates, n_repeats=50, max_seconds=max_seconds)
        return [len(values) for values in samples.values()]

    assert run(0.001) == [1, 1]
    # 5 s of warm-up; of 18 s rounds of "a", which is called twice in each, may last until 9 s.
    assert run(18) == [2, 3]


def test_stop_keeps_the_samples_taken_so_far(clock):
    stop = threading.Event()
    calls = Counter()

    def function():
        calls["n"] += 1
        clock.work(2000)
        if calls["n"] == 1 + 3:
            stop.set()

    assert times_of({"a": function}, n_repeats=10, stop=stop.is_set) == {
        "a": pytest.approx([2000] * 3)
    }
    assert calls["n"] == 4


def test_stop_may_be_a_function(clock):
    assert times_of({"a": lambda: clock.work(1)}, stop=lambda: True) == {"a": []}


def test_timing_holds_the_lock_and_releases_it_after_an_error(clock):
    def function():
        assert TIMING_LOCK.locked()
        clock.work(100)
        raise KeyError("from the callable")

    with pytest.raises(KeyError, match="from the callable"):
        interleave({"a": function})
    with pytest.raises(KeyError, match="from the callable"):
        peak_memory_bytes(function)
    assert not TIMING_LOCK.locked()


def test_stop_ends_a_wait_for_the_lock_that_another_timing_holds():
    told_once = iter([True, *[False] * 100])
    with TIMING_LOCK:
        stop = functools.partial(next, told_once)
        assert times_of({"a": lambda: pytest.fail("called")}, stop=stop) == {"a": []}
        assert TIMING_LOCK.locked()


@pytest.mark.parametrize("value", [0, -1, 2.5])
def test_a_count_below_one_is_refused(value):
    with pytest.raises(ValueError, match=f"n_repeats is {value}: use a whole number of at least 1"):
        interleave({"a": lambda: None}, n_repeats=value)


# Memory


def test_peak_memory_of_known_allocations_is_exact():
    x = torch.zeros(100_000)  # 400,000 bytes
    scalar = 100  # `x + 1` holds its 1 in a tensor of a few bytes for a moment

    def two_at_once():
        y = x + 1
        z = y + 1
        del y
        return z + 1

    def one_after_the_other():
        for _ in range(5):
            torch.empty(100_000)

    assert peak_memory_bytes(lambda: torch.empty(100_000)) == 400_000
    assert peak_memory_bytes(one_after_the_other) == 400_000
    assert 0 <= peak_memory_bytes(lambda: x + 1) - 400_000 < scalar
    assert 0 <= peak_memory_bytes(two_at_once) - 800_000 < scalar
    assert peak_memory_bytes(lambda: x.view(-1)[3:]) == 0


def test_memory_of_before_is_neither_counted_nor_subtracted_when_freed():
    held = [torch.empty(1_000_000) for _ in range(3)]

    def free_and_allocate():
        held.clear()
        torch.empty(1000)

    assert peak_memory_bytes(free_and_allocate) == 4000


def test_a_block_kept_from_one_trace_and_freed_in_the_next_leaves_no_debt():
    held = []
    assert peak_memory_bytes(lambda: held.append(torch.empty(100_000))) == 400_000

    def free_and_allocate():
        held.clear()
        torch.empty(1000)

    assert peak_memory_bytes(free_and_allocate) == 4000


def test_what_autograd_saves_and_the_gradient_are_counted():
    x = torch.ones(100_000, requires_grad=True)
    ones = torch.ones(100_000)

    def forward():
        with torch.no_grad():
            return x.exp().exp().exp()

    def forward_backward():
        return torch.autograd.grad(x.exp().exp().exp(), x, ones)

    # Without autograd two live at once; with it three saved outputs, and two gradients.
    assert peak_memory_bytes(forward) == 2 * 400_000
    assert peak_memory_bytes(forward_backward) >= 4 * 400_000


def test_peak_memory_is_the_same_at_every_run_and_in_a_thread():
    def function():
        x = torch.ones(50, 40, requires_grad=True)
        torch.autograd.grad((x @ x.T).softmax(-1).sum(), x)

    found = [peak_memory_bytes(function) for _ in range(3)]
    thread = threading.Thread(target=lambda: found.append(peak_memory_bytes(function)))
    thread.start()
    thread.join()
    assert len(set(found)) == 1 and len(found) == 4


def memory_at(seq_len, **changes):
    (cost,) = measure_cost([small(seq_len=seq_len, **changes)], n_repeats=1)
    return cost.memory_bytes


def test_softmax_memory_grows_as_n_squared_and_linear_memory_as_n():
    textbook = {"attention": "softmax", "kernel": "textbook"}
    softmax = [memory_at(n, **textbook) for n in (256, 512)]
    linear = [memory_at(n, attention="linear", kernel="torch") for n in (1024, 2048)]
    assert 3.6 < softmax[1] / softmax[0] < 4.1
    assert 1.7 < linear[1] / linear[0] < 2.1


def test_free_memory_is_what_the_system_calls_available(tmp_path):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 9000 kB\nMemFree: 1 kB\nMemAvailable: 5000 kB\n")
    assert module._system_free_bytes(meminfo) == 5000 * 1024
    assert module._system_free_bytes(tmp_path / "absent") > 0


def test_the_limit_of_an_enclosing_control_group_counts(tmp_path):
    membership, mount = tmp_path / "cgroup", tmp_path / "mount"
    inner = mount / "outer" / "inner"
    inner.mkdir(parents=True)
    for folder, limit, current, cache in (
        (inner, "max", 100, 10),
        (inner.parent, "1000", 400, 50),
    ):
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{current}\n")
        (folder / "memory.stat").write_text(f"anon 1\ninactive_file {cache}\n")
    membership.write_text("0::/outer/inner\n")
    assert module._cgroup_free_bytes(membership, mount) == [650]


def test_a_control_group_of_version_1_counts_even_at_the_mount_alone(tmp_path):
    membership, root = tmp_path / "cgroup", tmp_path / "mount" / "memory"
    root.mkdir(parents=True)
    (root / "memory.limit_in_bytes").write_text("1000\n")
    (root / "memory.usage_in_bytes").write_text("300\n")
    (root / "memory.stat").write_text("inactive_file 1\ntotal_inactive_file 20\n")
    membership.write_text("5:devices:/x\n4:memory:/not/visible/here\n0::/\n")
    assert module._cgroup_free_bytes(membership, tmp_path / "mount") == [720]
    assert module._cgroup_free_bytes(tmp_path / "absent", tmp_path) == []


TUNED = """
import sys
from pathlib import Path
import replib.__main__  # makes no tensors
from replib.lab import memory_use as memory
if sys.argv[1] == "kept":
    memory.LARGE_PAGES = Path("/nowhere")
told = memory.tune_memory() if sys.argv[1] != "as it is" else ""
import torch
for _ in range(2):
    before = memory.page_faults()
    torch.ones(16 * 2**20)  # 64 MB, which malloc gives back by itself
x = torch.ones(4 * 2**20, requires_grad=True)
peak = memory.peak_memory_bytes(lambda: torch.autograd.grad(x.exp().exp().sum(), x))
print(memory.page_faults() - before, peak, told)
"""


def tuned(how):
    """Page faults and peak memory of calls in a process of its own, and what was said."""
    own = (
        *memory_use.MALLOC_VARIABLES,
        memory_use.TUNING_VARIABLE,
        memory_use.LARGE_PAGES_VARIABLE,
    )
    inherited = {name: value for name, value in os.environ.items() if name not in own}
    command = [sys.executable, "-c", TUNED, how]
    done = subprocess.run(command, env=inherited, capture_output=True, text=True, check=True)
    faults, peak, *told = done.stdout.strip().split(maxsplit=2)
    return int(faults), int(peak), " ".join(told)


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc is not glibc's")
def test_tuned_memory_has_fewer_page_faults_and_the_same_peak():
    before, peak, _ = tuned("as it is")
    for tuning in ("large pages", "kept"):
        after, same, told = tuned(tuning)
        assert same == peak > 0
        if before > 16 * 2**20 * 4 / mmap.PAGESIZE / 2:  # else all pages are large already
            assert after < before * 0.8, told
        assert "pages of 2 MB" in told or "kept when it is freed" in told


def test_memory_is_left_as_it_is_where_asked_for_or_already_tuned(monkeypatch):
    for name in (*memory_use.MALLOC_VARIABLES, memory_use.LARGE_PAGES_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(memory_use.ctypes, "CDLL", lambda name: pytest.fail("malloc was changed"))
    monkeypatch.setenv(memory_use.MALLOC_VARIABLES[0], "1000")
    assert memory_use.tune_memory() == "as MALLOC_MMAP_THRESHOLD_ says"
    monkeypatch.setenv(memory_use.TUNING_VARIABLE, "0")
    assert memory_use.tune_memory() == "as it is, by REPLIB_TUNE_MEMORY=0"
    assert memory_use.LARGE_PAGES_VARIABLE not in os.environ


@pytest.mark.parametrize("trouble", [AttributeError, OSError, TypeError])
def test_a_system_with_neither_is_left_as_it_is(monkeypatch, tmp_path, trouble):
    def none(name):
        raise trouble

    for name in (
        *memory_use.MALLOC_VARIABLES,
        memory_use.TUNING_VARIABLE,
        memory_use.LARGE_PAGES_VARIABLE,
    ):
        monkeypatch.delenv(name, raising=False)
    never = tmp_path / "enabled"
    never.write_text("always madvise [never]\n")
    for path in (never, tmp_path / "absent"):
        monkeypatch.setattr(memory_use, "LARGE_PAGES", path)
        monkeypatch.setattr(memory_use.ctypes, "CDLL", none)
        assert memory_use.tune_memory() == "as it is: neither large pages nor glibc"
    memory_use.trim_memory()


# Costs


@pytest.mark.slow
@pytest.mark.parametrize("work", timing.WORKS)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("dtype", timing.DTYPES)
def test_every_choice_of_every_mechanism_has_a_cost(work, causal, dtype):
    configs = [
        small(name, work=work, causal=causal, dtype=dtype, **how(name, choice))
        for name, mechanism in ATTENTION.items()
        if mechanism.causal or not causal
        for choice in (None, *mechanism.choices())
    ]
    configs = [config for config in configs if unavailable(config, "cpu") is None]
    assert {config.attention for config in configs} == set(CAUSAL if causal else ATTENTION)
    costs = list(measure_cost(configs, n_repeats=2))
    assert [cost.config for cost in costs] == configs
    assert {cost.outcome for cost in costs} == {"ok"}
    for cost in costs:
        assert len(cost.time_ms) == 2 and min(cost.time_ms) > 0
        assert cost.memory_bytes >= 2 * 33 * 32 * timing.DTYPES[dtype].itemsize


def test_the_backward_pass_takes_more_memory_than_the_forward_pass():
    for name in ATTENTION:
        forward, both = (
            memory_at(65, attention=name, causal=name in CAUSAL, work=work) for work in timing.WORKS
        )
        assert both > forward


def test_forward_runs_without_autograd_and_nothing_accumulates(broken, monkeypatch):
    seen = []

    def forward(self, q, k, v, *, causal):
        seen.append((torch.is_grad_enabled(), v))
        return q + k + v

    monkeypatch.setattr(broken, "forward", forward)
    for work in timing.WORKS:
        list(measure_cost([small("broken", work=work)], n_repeats=1))
        assert {grad_enabled for grad_enabled, _ in seen} == {work == "forward_backward"}
        assert all(v.grad is None for _, v in seen)
        seen.clear()


def test_points_of_the_same_shape_are_timed_together(monkeypatch):
    groups = []

    def record(callables, **options):
        groups.append([candidate.config for candidate in callables.values()])
        return {key: Samples([1.0], [0]) for key in callables}

    monkeypatch.setattr(timing, "interleave", record)
    configs = [small(name, seq_len=n) for name in ("softmax", "linear") for n in (4, 8)]
    costs = list(measure_cost(configs, n_repeats=1))
    assert groups == [[configs[0], configs[2]], [configs[1], configs[3]]]
    assert [cost.config for cost in costs] == [configs[0], configs[2], configs[1], configs[3]]


def test_a_summary_has_the_quartiles_and_the_figures_per_sample():
    cost = Cost(small(batch_size=4), "ok", None, (1.0, 2.0, 3.0, 4.0, 10.0), 1000)
    assert cost.summary() == {
        "time_ms": 3.0,
        "time_ms_q25": 2.0,
        "time_ms_q75": 4.0,
        "time_ms_samples": [1.0, 2.0, 3.0, 4.0, 10.0],
        "page_faults_samples": [],
        "page_faults_own": None,
        "n_disturbed": 0,
        "time_ms_per_sample": 0.75,
        "memory_bytes": 1000,
        "memory_bytes_per_sample": 250,
        "n_repeats": 5,
    }


def test_a_summary_without_samples_has_no_time():
    summary = Cost(small(), "out_of_memory", "no room", (), None).summary()
    assert summary["time_ms"] is None and summary["memory_bytes_per_sample"] is None
    assert summary["time_ms_samples"] == [] and summary["n_repeats"] == 0


# Out of memory


def test_a_point_that_would_not_fit_is_a_row_and_the_others_go_on(monkeypatch):
    monkeypatch.setattr(timing, "available_memory_bytes", lambda device: 5_000_000)
    textbook = small("softmax", kernel="textbook", seq_len=1024)
    huge, fits = measure_cost([textbook, small("linear", seq_len=1024)], n_repeats=1)
    assert (huge.outcome, huge.time_ms, huge.memory_bytes) == ("out_of_memory", (), None)
    assert huge.detail.endswith("0.0 GB free: lower seq_len or batch_size")
    assert fits.outcome == "ok" and len(fits.time_ms) == 1


def test_the_inputs_count_among_what_must_fit(broken, monkeypatch):
    inputs = 4 * 2 * 33 * 32 * 4  # q, k, v and the output gradient: (1, 2, 33, 32) in float32
    monkeypatch.setattr(broken, "healthy_calls", 100)
    for available, outcome in ((inputs, "out_of_memory"), (2 * inputs, "ok")):
        monkeypatch.setattr(timing, "available_memory_bytes", lambda device, x=available: x)
        (cost,) = measure_cost([small("broken")], n_repeats=1)
        assert cost.outcome == outcome


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(ALLOCATOR_TEXT),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."),
        MemoryError(),
    ],
)
@pytest.mark.parametrize("healthy_calls", [0, 3])
def test_an_allocation_error_at_any_call_is_a_row(broken, monkeypatch, error, healthy_calls):
    monkeypatch.setattr(broken, "error", error)
    monkeypatch.setattr(broken, "healthy_calls", healthy_calls)
    costs = list(measure_cost([small("broken"), small("linear")], n_repeats=3))
    assert [cost.outcome for cost in costs] == ["out_of_memory", "ok"]
    assert costs[0].time_ms == () and len(costs[1].time_ms) == 3
    assert costs[0].detail.endswith(": lower seq_len or batch_size")


def test_the_allocator_of_this_torch_is_recognised_as_out_of_memory():
    for shape in [(10**14,), (2**62, 2**10)]:
        with pytest.raises(RuntimeError) as caught:
            torch.empty(shape)
        assert memory_use.is_out_of_memory(caught.value)


@pytest.mark.parametrize("error", [RuntimeError("shapes disagree"), ValueError("wrong")])
def test_any_other_error_is_raised(broken, monkeypatch, error):
    monkeypatch.setattr(broken, "error", error)
    with pytest.raises(type(error), match=str(error)):
        list(measure_cost([small("broken")]))
    assert not TIMING_LOCK.locked()


# Stop


def test_a_stopped_measurement_keeps_what_it_has_and_says_so(monkeypatch):
    stop = threading.Event()
    first = [small("softmax"), small("linear")]
    elapsed_ms = timing._elapsed_ms
    n_timed = 0

    def stop_in_the_second_round(function, n_calls, device):
        nonlocal n_timed
        n_timed += 1
        if n_timed == 2 + 3:  # two warm-ups, then the third sample
            stop.set()
        return elapsed_ms(function, n_calls, device)

    monkeypatch.setattr(timing, "_elapsed_ms", stop_in_the_second_round)
    monkeypatch.setattr(timing, "MAX_WARMUPS", 0)
    costs = list(measure_cost([*first, small(seq_len=64)], n_repeats=50, stop=stop.is_set))
    assert [cost.config for cost in costs] == first
    assert {cost.outcome for cost in costs} == {"interrupted"}
    assert sorted(len(cost.time_ms) for cost in costs) == [1, 2]
    assert {cost.detail for cost in costs} == {f"stopped after {n} of 50 repeats" for n in (1, 2)}
    assert all(cost.memory_bytes > 0 for cost in costs)


def test_a_point_is_ok_when_the_stop_came_after_its_last_repeat():
    stop = threading.Event()
    costs = measure_cost([small(seq_len=n) for n in (8, 16)], n_repeats=1, stop=stop.is_set)
    first = next(costs)
    stop.set()
    assert first.outcome == "ok"
    assert list(costs) == []


# Bad input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seq_len": 0}, "seq_len is 0: use a whole number of at least 1"),
        ({"seq_len": -5}, "seq_len is -5: use"),
        ({"seq_len": 1.5}, "seq_len is 1.5: use"),
        ({"seq_len": 10**9}, "seq_len 1000000000 is too long: use at most 1048576"),
        ({"batch_size": 0}, "batch_size is 0: use"),
        ({"n_heads": True}, "n_heads is True: use"),
        ({"head_dim": "32"}, "head_dim is '32': use"),
        ({"attention": "quadratic"}, "unknown attention 'quadratic': use softmax, linear"),
        ({"kernel": "fastest"}, "no kernel 'fastest': use "),
        ({"work": "backward"}, "unknown work 'backward': use forward, forward_backward"),
        ({"dtype": "float16"}, "unknown dtype 'float16': use float32, bfloat16, float64"),
    ],
)
def test_a_bad_value_is_refused_with_the_remedy(changes, message):
    with pytest.raises(ValueError, match=message):
        CostConfig(**changes)


# Planning


@pytest.mark.parametrize(("seq_len", "batch_size"), [(1, 4096), (512, 8), (4096, 1), (8192, 1)])
def test_the_batch_size_is_inverse_to_the_length(seq_len, batch_size):
    assert tokens_batch(4096, seq_len) == batch_size


@pytest.mark.parametrize("work", timing.WORKS)
@pytest.mark.parametrize("name", [x for x in ATTENTION if x not in ("fwm", "linformer")])
def test_memory_is_predicted_from_short_lengths(name, work):
    """Of fwm, a position at a time, it would take seconds; torch's fused kernel takes the few
    queries of a short Linformer otherwise than many."""
    n = 1024
    config = small(name, seq_len=n, batch_size=3, work=work, causal=name in CAUSAL)
    (cost,) = measure_cost([config], n_repeats=1)
    inputs = 4 * 3 * n * 2 * 32 * 4
    assert 0.4 < (predicted_bytes(config) - inputs) / cost.memory_bytes < 1.7


def test_memory_that_grows_as_n_squared_is_predicted_to():
    config = small("softmax", kernel="textbook", seq_len=1024)
    (cost,) = measure_cost([config], n_repeats=1)
    assert predicted_bytes(config) == pytest.approx(cost.memory_bytes, rel=0.1)


@pytest.mark.parametrize("task", [CausalCopy(seq_len=256), SequenceCopy(seq_len=200), Pixels()])
def test_the_memory_of_a_training_is_predicted_from_small_steps(task):
    model = TransformerConfig(n_layers=2, n_heads=2, d_model=32, d_feedforward=64, dropout=0.0)
    config = TrainingConfig(task=task, model=model, batch_size=8)
    training = config.training(device="cpu")
    training.train_step()
    kept = 12 * sum(x.numel() for x in training.model.parameters())
    peak = kept + peak_memory_bytes(training.train_step)
    assert predicted_bytes(config) == pytest.approx(peak, rel=0.35)


def test_a_model_that_does_not_fit_is_not_built(monkeypatch):
    monkeypatch.setattr(timing, "available_memory_bytes", lambda device: 10**6)
    model = TransformerConfig(n_layers=64, d_model=8192, n_heads=8, d_feedforward=32768)
    assert predicted_bytes(TrainingConfig(model=model)) > 10**11
