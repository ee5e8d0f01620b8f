"""What page 2 says of ranks follows the formulas, what was recorded, and what is published."""

import math
from dataclasses import asdict, replace

import pytest

from replib.claims.scaling import over_ranks as page
from replib.lab import over_ranks
from replib.lab.over_ranks import Attended, AttentionOverRanks, Compared, CopyOverRanks, PartTimes
from replib.parallel import WAYS, cost
from replib.published import published

VALUES = page.inputs().value
LINK = cost.Link(latency_s=VALUES["latency_us"] / 1e6, bandwidth=VALUES["gb_per_s"] * 1e9)
ZECO = published()["sequence_parallelism"]["zeco2025"]


def title(chart):
    lines = chart.to_dict()["title"]["text"]
    return str(lines) if isinstance(lines, dict) else " ".join(lines)


def data(chart):
    (rows,) = chart.to_dict()["datasets"].values()
    return rows


def found(part=None, **seconds):
    """What two processes found, of which each took so long."""
    run = AttentionOverRanks()
    each = {
        way: Attended(total_s=0.2, scan_s=0.05, sent_bytes=cost.sent_bytes(way, run.layer, 2))
        for way in WAYS
    }
    alone = Attended(total_s=0.3, scan_s=0.0, sent_bytes=0)
    first = Compared(ways=each, alone=alone, part=part)
    return page.Measured(run, [first, replace(first, alone=None, part=None)])


def test_the_line_of_states_is_flat_and_that_of_softmax_is_not():
    rows = data(page.traffic_chart(VALUES))
    of = {name: [r["value"] for r in rows if r["scheme"] == name] for name in page.NAMES.values()}
    assert len(set(of[page.NAMES["ring"]])) == 1
    of_softmax = of[page.NAMES["softmax ring"]]
    assert of_softmax[-1] == pytest.approx(2**12 * of_softmax[0], rel=1e-3)


def test_the_table_has_the_times_of_the_link():
    slow = VALUES | {"latency_us": 1000}
    assert "7.09 ms" in page.traffic_table(slow).text  # 7 hops of 1 ms and 133 kB at 10 GB/s


def test_a_rank_of_a_ring_waits_for_a_hop_more_than_the_one_before_it():
    part = PartTimes(local_s=1e-6, output_s=3e-6)
    rows = data(page.timeline(VALUES, found(part)))
    layer, n = AttentionOverRanks().layer, VALUES["seq_len"] / VALUES["ranks"]
    for way in WAYS:
        ends = [
            r["end"] for r in rows if r["way"] == page.NAMES[way] and r["phase"] == "its output"
        ]
        assert len(ends) == VALUES["ranks"]
        last = 4e-6 * n + cost.seconds(way, layer, VALUES["ranks"], LINK)
        assert max(ends) == pytest.approx(1e3 * last, rel=1e-4)
        hop = 1e3 * LINK.seconds(layer.state_bytes)
        step = hop if way == "ring" else 0
        assert ends[3] - ends[2] == pytest.approx(step, abs=1e-2 * hop)


def test_what_was_measured_here_is_told_with_its_share_and_the_formula():
    text = page.measured_text(found())
    layer = AttentionOverRanks().layer
    assert "300 ms" in text and "| 200 ms | 25% |" in text
    for way in WAYS:
        assert f"{2 * cost.sent_bytes(way, layer, 2):,}" in text


def test_a_line_is_found_again_and_a_departure_from_it_told():
    ranks = [2, 4, 8, 16]
    a, b, departure = page.fitted_line(ranks, [5 + 2 * (w - 1) for w in ranks])
    assert (a, b) == pytest.approx((5, 2)) and departure < 1e-9
    assert page.fitted_line(ranks, [7, 11, 19, 99])[2] > 0.1


def test_an_all_scan_costs_less_a_rank_than_an_all_gather_as_published():
    slopes = {}
    for name in ("all-gather", "all-scan"):
        times = ZECO["collective_ms"]
        _, slopes[name], departure = page.fitted_line(times["gpus"], times[name])
        assert departure < 0.25
    assert 3 < slopes["all-gather"] / slopes["all-scan"] < 6


def test_the_published_chart_says_how_far_the_lines_are_off():
    assert "to 1% to 23%" in title(page.published_chart(ZECO)).replace('", "', " ")


def test_throughputs_as_published_agree_with_the_claim_of_60_percent():
    rows = ZECO["tokens_per_s_per_gpu"]
    assert rows["ZeCO"][-1] / rows["LASP-2"][-1] == pytest.approx(1.6, abs=0.02)


RECORDED = over_ranks.recorded()


def test_bytes_that_were_sent_when_it_was_recorded_are_those_of_the_formula():
    run = CopyOverRanks(**RECORDED["run"])
    for case in RECORDED["runs"]:
        sent = sum(rank["sent_bytes"] for rank in case["ranks"])
        n = len(case["ranks"])
        of_layer = cost.sent_bytes(case["way"], run.layer, n) if case["way"] else 0
        assert sent == 2 * run.n_layers * of_layer


def test_two_processes_held_twice_the_sequence_in_the_memory_of_one():
    text = page.recorded_text(RECORDED)
    peaks = {
        (case["seq_len"], len(case["ranks"])): max(r["tensor_bytes"] for r in case["ranks"])
        for case in RECORDED["runs"]
    }
    n = RECORDED["run"]["seq_len"]
    assert peaks[n, 2] < 1.05 * peaks[n // 2, 1] < 0.6 * peaks[n, 1]
    assert f"{peaks[n, 2] / 1e6:.0f} MB" in text


def test_losses_over_processes_were_those_of_one():
    n = RECORDED["run"]["seq_len"]
    losses = [r["losses"] for c in RECORDED["runs"] if c["seq_len"] == n for r in c["ranks"]]
    for one in losses[1:]:
        assert one == pytest.approx(losses[0], rel=1e-4)
    assert losses[0][-1] < losses[0][0]


def test_the_document_has_the_recorded_table():
    text = (over_ranks.files.ROOT / "docs" / "parallel.md").read_text(encoding="utf-8")
    assert over_ranks.recorded_table(RECORDED) in text


def test_without_records_the_page_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(over_ranks, "RECORDED", tmp_path / "nothing.json")
    assert "press" in page.timeline(VALUES, None).text
    assert "Nothing is recorded" in page.two_processes(None).text


@pytest.mark.slow  # kernels may have to be compiled
@pytest.mark.parametrize("attention", ("linear", "delta"))
def test_parts_of_virtual_ranks_are_timed(attention):
    run = AttentionOverRanks(attention=attention, seq_len=64, n_heads=1, head_dim=4, n_repeats=1)
    times = over_ranks.part_times(run, 4)
    assert all(math.isfinite(s) and s >= 0 for s in asdict(times).values())


@pytest.mark.slow
def test_one_process_trains_without_ranks():
    run = CopyOverRanks(seq_len=32, n_steps=3, n_layers=1, n_heads=1, d_model=8)
    found = over_ranks.of_this_rank(run, None)
    assert len(found.losses) == 3 and found.sent_bytes == 0 and found.scan_s == 0
    assert found.tensor_bytes > 0
