"""The fast weights notebook: it shows the memory that there is, and says what is amiss."""

import base64
import struct
import zlib
from types import SimpleNamespace

import marimo as mo
import polars as pl
import pytest
import torch
from shown import markup

from replib.claims import capacity, update_rules
from replib.claims.capacity import filling
from replib.claims.capacity import filling_charts as charts
from replib.claims.capacity import page as parts
from replib.fast_weights import UPDATE_RULES
from replib.lab import store
from replib.pages import controls
from replib.pages.controls import initial_values
from replib.published import published

SETTINGS = initial_values(parts.filling_controls())[0]
TRAINING = initial_values(parts.training_controls())[0]
MENDED = {"eval_half_length": False, "report": "best", "published_eps": False}


def config(**changes):
    sizes = {"fill_keys": 8, "fill_dim": 4, "fill_again": 1}
    return parts.fill_config(SETTINGS | sizes | changes)


def problem(**changes):
    return controls.attempt(parts.fill_config, SETTINGS | changes)[1].text


def datasets(chart):
    return [pl.DataFrame(rows) for rows in chart.to_dict()["datasets"].values()]


def with_column(chart, name):
    return next(frame for frame in datasets(chart) if name in frame.columns)


def pixels(url):
    """The (R, G, B, A) of each pixel of a PNG, row by row."""
    data = base64.b64decode(url.removeprefix("data:image/png;base64,"))
    chunks, at = {}, 8
    while at < len(data):
        (size,) = struct.unpack(">I", data[at : at + 4])
        name, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + size]
        assert struct.unpack(">I", data[at + 8 + size : at + 12 + size]) == (
            zlib.crc32(name + body),
        )
        chunks[name], at = body, at + 12 + size
    width, height = struct.unpack(">2I", chunks[b"IHDR"][:8])
    lines, stride = zlib.decompress(chunks[b"IDAT"]), 4 * width + 1
    assert len(lines) == height * stride
    return [
        [tuple(lines[y * stride + 1 + 4 * x :][:4]) for x in range(width)] for y in range(height)
    ]


def test_a_picture_has_a_pixel_an_entry_with_its_sign_and_size():
    (first, second), (third, fourth) = pixels(charts.picture([[0.0, 2.0], [-1.0, -2.0]], 2.0))
    assert first[3] == 0 and second[3] == fourth[3] == 255 and third[3] == 128
    assert "#{:02X}{:02X}{:02X}".format(*second[:3]) == charts.POSITIVE
    assert "#{:02X}{:02X}{:02X}".format(*third[:3]) == charts.NEGATIVE
    assert [line[0][3] for line in pixels(charts.picture([[0.0], [0.0]], 0.0))] == [0, 0]


@pytest.mark.parametrize("rule", UPDATE_RULES)
@pytest.mark.parametrize("n_writes", [0, 1, 8, 9])
def test_the_heat_map_is_of_the_memory_after_its_writes(rule, n_writes):
    filled = config()
    w = filling.fill(filling.draw(filled), rule).memory(n_writes)
    chart = parts.memory_chart(filled, rule, n_writes)
    (url,) = with_column(chart, "url")["url"]
    alpha = torch.tensor([[pixel[3] for pixel in line] for line in pixels(url)])
    assert alpha.shape == w.shape == (9, 8)
    expected = (w.abs() / w.abs().max().clamp(min=1e-30) * 255).round()
    assert torch.equal(alpha, expected.long())
    assert f"{n_writes} of 9 writes" in str(chart.to_dict()["title"])


@pytest.mark.parametrize("rule", UPDATE_RULES)
@pytest.mark.parametrize("values", filling.VALUES)
def test_the_bars_are_what_a_key_reads_beside_its_last_value(rule, values):
    filled = config(fill_values=values)
    memory = filling.fill(filling.draw(filled), rule)
    for n_writes, key, last in ((9, 0, 8), (8, 0, 0), (5, 4, 4)):
        frame = with_column(parts.reads_chart(filled, rule, n_writes, key), "role")
        assert frame["read"].to_list() == pytest.approx(
            memory.reads[n_writes, key].tolist(), rel=1e-4, abs=1e-9
        )
        right = memory.writes.values[last].tolist()
        assert frame["right"].to_list() == pytest.approx(right, rel=1e-4)
        roles = dict(enumerate(frame["role"]))
        if values == "one-hot":
            assert roles[last] == "right value"
            assert [i for i, role in roles.items() if role == "old value"] == [0] * (n_writes == 9)


def test_a_key_that_is_not_written_yet_is_said_to_be_so():
    assert "not written yet" in str(parts.reads_chart(config(), "sum", 2, 5).to_dict()["title"])


def test_losses_along_the_writes_are_of_every_rule_with_marks_at_r_and_where_keys_come_back():
    filled = config(fill_keys=12, fill_features="linear")
    chart = parts.writes_chart(filled, "sum", 7)
    frame = with_column(chart, "loss")
    for rule in UPDATE_RULES:
        memory = filling.fill(filling.draw(filled), rule)
        drawn = frame.filter(pl.col("rule") == rule).sort("n_writes")["loss"].to_list()
        assert drawn == pytest.approx(memory.losses(), rel=1e-4, abs=1e-9)
    texts = {
        row["text"]: row["n_writes"] for d in datasets(chart) if "text" in d for row in d.to_dicts()
    }
    assert texts == {"R = 4": 4, "keys come back": 12}


def shares(filled, rule, key=0):
    return {line["part"]: line["share"] for line in parts.overwritten(filled, rule, key)}


def test_an_overwritten_key_reads_both_values_alike_by_sum_and_the_new_one_by_delta():
    for values in filling.VALUES:
        filled = config(fill_dim=32, fill_values=values)
        by_sum, by_delta = shares(filled, "sum"), shares(filled, "delta")
        if values == "one-hot":
            assert by_sum["right value"] == pytest.approx(by_sum["old value"])
            assert 0.2 < by_sum["old value"] <= 0.5
        assert by_delta["right value"] == pytest.approx(1)
        assert by_delta["old value"] == pytest.approx(0, abs=1e-9)
        assert by_delta["other values"] == pytest.approx(0, abs=1e-9)


def test_what_a_key_reads_is_the_sum_of_its_parts():
    filled = config(fill_again=8, fill_values="random")
    for rule in UPDATE_RULES:
        memory = filling.fill(filling.draw(filled), rule)
        read, values, part = memory.reads[-1, 2], memory.writes.values, shares(filled, rule, 2)
        rest = read - part["right value"] * values[10] - part["old value"] * values[2]
        assert rest.norm().item() == pytest.approx(part["other values"], abs=1e-9)
        assert (rest @ values[10]).item() == pytest.approx(0, abs=1e-9)


def test_a_rule_that_diverges_is_told_with_what_to_do_and_left_out_of_charts():
    wild = config(fill_keys=64, fill_features="linear", fill_dim=16, fill_scale="none")
    told = markup(parts.memory_view(wild, "delta", wild.n_writes, 1))
    assert "With the rule delta" in told and "Scale features to length 1, or lower β" in told
    for chart in (parts.writes_chart(wild, "sum", 3), parts.overwrite_chart(wild, 0)):
        assert set(with_column(chart, "rule")["rule"]) == {"sum", "fwm"}
        assert "as it diverges: delta" in str(chart.to_dict()["title"]["subtitle"])
    assert "vega" in parts.memory_view(wild, "sum", wild.n_writes, 1).text
    tame = parts.overwrite_chart(config(), 0)
    assert set(with_column(tame, "rule")["rule"]) == set(UPDATE_RULES)
    assert "diverges" not in str(tame.to_dict()["title"])


def test_settings_that_nothing_can_be_shown_of_are_said_so():
    views = parts.memory_view(None, "sum", 1, 1), parts.overwrite_view(None, 1)
    for view in (*views, parts.crosstalk_view(None)):
        assert "Nothing to show with these settings" in view.text


def test_a_key_with_one_value_is_told_from_those_with_two():
    assert "Ask for a key up to 1" in parts.overwrite_view(config(), 2).text
    assert "No key is given a new value" in parts.overwrite_view(config(fill_again=0), 1).text


def test_ranks_end_at_the_feature_size_and_crosstalk_is_of_these_keys():
    filled = config(fill_features="linear")
    chart, ranks, eigen = parts._crosstalk_charts(filled)
    frame = with_column(ranks, "what")
    rank = frame.filter(pl.col("what") == "rank").sort("n_keys")
    assert rank["n_keys"].max() == 8 and rank["value"].max() == 4
    assert "4" in str(ranks.to_dict()["title"])
    keys = filling.key_features(filled, 8)
    cosines = torch.nn.functional.cosine_similarity(keys[:, None], keys[None], dim=-1)
    (url,) = with_column(chart, "url")["url"]
    alpha = torch.tensor([[pixel[3] for pixel in line] for line in pixels(url)])
    assert (alpha - cosines.abs() * 255).abs().max() < 1
    assert with_column(eigen, "index").height == 4


def test_settings_that_make_no_memory_are_explained():
    said = problem(fill_features="tanh", fill_scale="sum 1")
    assert "both signs" in said and "length 1" in said
    assert "both signs" in problem(fill_features="tanh", fill_scale="sum 1")
    for view in (
        parts.memory_view(None, "sum", 1, 1),
        parts.overwrite_view(None, 1),
        parts.crosstalk_view(None),
    ):
        assert "vega" not in view.text


def test_no_more_keys_come_back_than_there_are():
    assert config(fill_keys=2, fill_again=32).n_again == 2


@pytest.mark.slow
def test_watching_shows_the_writes_as_they_arrive_and_ends_with_all(monkeypatch):
    shown = []
    monkeypatch.setattr(mo.output, "replace", lambda page: shown.append(page.text))
    monkeypatch.setattr(parts, "PAUSE_S", 0)
    page = parts.memory_view(config(), "delta", 3, 1, slowly=True).text
    assert [f"{n} of 9 writes" in text for n, text in enumerate(shown)] == [True] * 9
    assert "9 of 9 writes" in page
    shown.clear()
    monkeypatch.setattr(parts, "MAX_FRAMES", 4)
    parts.memory_view(config(), "delta", 3, 1, slowly=True)
    assert len(shown) == 3


def test_a_view_leaves_the_number_of_threads_as_it_was():
    torch.set_num_threads(2)
    try:
        parts.crosstalk_view(config())
        parts.memory_view(config(), "sum", 4, 1)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def row(config, experiment="capacity", loss=0.02, seed=0):
    curve = {"step": [100, 200], "loss": [0.4, loss]}
    summary = {"n_steps": 200, "final_loss": 0.4, "best_loss": loss, "reported_loss": loss}
    summary |= {"solved": False, "reason": "no progress"}
    return store.make_row(experiment, "live", config, seed, "ok", summary, curve)


def test_runs_of_this_session_are_curves_and_points_among_the_recorded():
    jobs = parts.live_jobs(TRAINING | MENDED)
    rows = [row(job.config, loss=0.01 * i) for i, job in enumerate(jobs, start=1)]
    none = {"capacity": [], "update_rules": []}
    logs = published()["fastweights_logs"]
    curves = parts.charts.memory_curves(parts.frames.training_curves(rows), title="t")
    frame = with_column(curves, "step")
    assert set(frame["series"]) == {"softmax", "linear", "dpfp (nu1)"}
    assert sorted(frame.filter(pl.col("step") == 200)["value"]) == [0.01, 0.02, 0.03]
    chart = parts.recorded_chart(rows, logs, "capacity")
    points = next(d for d in datasets(chart) if "source" in d.columns and "n_keys" in d.columns)
    assert points.filter(pl.col("source") == "live").height == 3
    assert parts.session_charts(rows, none, logs).text.count("vega") >= 2
    assert "Nothing has run yet" in parts.session_charts([], none, logs).text


def test_the_table_of_runs_says_what_ran_and_how_it_ended():
    again = {"setting": "keys come back", "update_rule": "delta", "eval_half_length": True}
    jobs = parts.live_jobs(TRAINING | MENDED | again | {"attention": ("softmax", "dpfp")})
    finished = [row(job.config, "update_rules", seed=2) for job in jobs]
    page = controls.history(SimpleNamespace(finished=finished)).text
    half = "keys come back, evaluated on half the length, seed 2"
    assert f"softmax, S = 40, D = 64, {half}" in page
    assert f"dpfp nu1, delta, S = 40, D = 64, {half}" in page
    assert "best loss 0.0200 in 200 steps, ended: no progress" in page
    none = {"capacity": [], "update_rules": []}
    charts_of = parts.session_charts(finished, none, published()["fastweights_logs"]).text
    assert "rule delta" in charts_of


def test_the_cards_say_what_this_session_found_and_that_it_found_nothing_yet(data):
    recorded = capacity.CLAIM.recorded(), update_rules.CLAIM.recorded()
    page = "".join(one.cards([]).text for one in recorded)
    assert page.count("Nothing has run yet") == 3
    (job,) = parts.live_jobs(TRAINING | MENDED | {"attention": ("dpfp",)})
    page = "".join(one.cards([row(job.config, loss=5e-4)]).text for one in recorded)
    assert page.count("Nothing has run yet") == 1 and "of the runs: DPFP-1" in page


def test_every_switch_is_a_setting_of_the_runs_and_in_the_address(monkeypatch):
    asked, shared = {}, {}
    query = SimpleNamespace(to_dict=lambda: asked, get=shared.get, set=shared.__setitem__)
    monkeypatch.setattr(mo, "query_params", lambda: query)
    monkeypatch.setattr(mo, "cli_args", lambda: SimpleNamespace(to_dict=dict))
    switches = controls.switches(parts.SWITCHES, controls.asked_for(parts.SWITCHES))
    assert parts.chosen_defects(switches) == MENDED and shared == {"defects": "none"}
    assert set(switches.elements) == set(parts.DEFECTS)
    page = parts.show_defects(switches).text
    assert all(text in page for _, text in parts.DEFECTS.values())
    asked["defects"] = "last_loss,eval_half_length"
    chosen = parts.chosen_defects(
        controls.switches(parts.SWITCHES, controls.asked_for(parts.SWITCHES))
    )
    assert chosen == {"eval_half_length": True, "report": "last", "published_eps": False}
    assert shared == {"defects": "eval_half_length,last_loss"}
