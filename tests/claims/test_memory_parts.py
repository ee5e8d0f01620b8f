"""The fast weights notebook: the memory that it shows is the one there is, and its controls are
those of the runs."""

import base64
import struct
import zlib
from itertools import product

import polars as pl
import pytest
import torch
import vl_convert

from replib.claims import EXPERIMENTS, capacity, update_rules
from replib.claims.capacity import charts, filling_charts, page
from replib.claims.capacity.filling import fill
from replib.fast_weights import UPDATE_RULES
from replib.lab import store
from replib.pages import style
from replib.pages.controls import initial_values

SETTINGS = initial_values(page.filling_controls())[0]
TRAINING = initial_values(page.training_controls())[0]


def settings(**changes):
    sizes = {"fill_keys": 8, "fill_dim": 4, "fill_again": 1}
    return SETTINGS | sizes | changes


def with_field(chart, name):
    """The inline data of a chart that have a field."""
    spec = chart.to_dict()
    inline = [values for layer in _layers(spec) if (values := layer.get("data", {}).get("values"))]
    found = [*spec.get("datasets", {}).values(), *inline]
    return next(rows for rows in found if rows and name in rows[0])


def _layers(spec):
    for layer in spec.get("layer", []):
        yield layer
        yield from _layers(layer)


def vega_of(chart):
    """The Vega that a page shows: compiled, and patched."""
    vega = {"signals": []} | vl_convert.vegalite_to_vega(style.printable(chart).to_json())
    for edit in chart.to_dict()["usermeta"]["embedOptions"]["patch"]:
        *way, last = edit["path"].strip("/").split("/")
        place = vega
        for name in way:
            place = place[name]
        if last == "-":
            place.append(edit["value"])
        else:
            place[last] = edit["value"]
    return vega


def pixels(url):
    """The (R, G, B, A) of each pixel of a PNG, row by row."""
    data = base64.b64decode(url.removeprefix("data:image/png;base64,"))
    chunks, at = {}, 8
    while at < len(data):
        (size,) = struct.unpack(">I", data[at : at + 4])
        name, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + size]
        checksum = struct.unpack(">I", data[at + 8 + size : at + 12 + size])
        assert checksum == (zlib.crc32(name + body),)
        chunks[name], at = body, at + 12 + size
    width, height = struct.unpack(">2I", chunks[b"IHDR"][:8])
    lines, stride = zlib.decompress(chunks[b"IDAT"]), 4 * width + 1
    return [
        [tuple(lines[y * stride + 1 + 4 * x :][:4]) for x in range(width)] for y in range(height)
    ]


def test_a_picture_has_a_pixel_an_entry_with_its_sign_and_size():
    url = filling_charts.picture([[0.0, 2.0], [-1.0, -2.0]], 2.0, "#009E73")
    (first, second), (third, fourth) = pixels(url)
    assert first[3] == 0 and second[3] == fourth[3] == 255 and third[3] == 128
    assert "#{:02X}{:02X}{:02X}".format(*second[:3]) == "#009E73"
    assert "#{:02X}{:02X}{:02X}".format(*third[:3]) == style.NEUTRAL


@pytest.mark.parametrize("rule", UPDATE_RULES)
def test_the_view_holds_the_memory_and_what_every_key_reads_after_every_write(rule):
    chosen = settings(fill_rule=rule)
    chart, expected = page.memory_view(chosen), fill(page.fill_config(chosen), rule)
    pictures, records = with_field(chart, "url"), with_field(chart, "read")
    assert [one["after"] for one in pictures] == list(range(10))
    most = expected.w.abs().max()
    for after in (0, 3, 9):
        alpha = torch.tensor([[x[3] for x in line] for line in pixels(pictures[after]["url"])])
        assert torch.equal(alpha, (expected.w[after].abs() / most * 255).round().long())
    assert {(one["after"], one["of"]) for one in records} == set(product(range(10), range(1, 9)))
    for one in records:
        read = expected.reads[one["after"], one["of"] - 1].tolist()
        assert one["read"] == pytest.approx(read, abs=1e-4)
    framed = {(one["after"], one["of"]): (one["row"], one["old"]) for one in records}
    assert framed[3, 3] == (2, -1) and framed[3, 4] == (-1, -1) and framed[9, 1] == (8, 0)


def test_a_slider_moves_signals_alone_and_the_memory_fills_by_itself():
    vega = vega_of(page.memory_view(settings()))
    signals = {one["name"]: one for one in vega["signals"]}
    assert [signals[name]["bind"]["max"] for name in ("writes", "asked_key")] == [9, 8]
    assert signals["writes"]["value"] == 0 and signals["filling"]["value"] is True
    assert "writes" in vega["title"]["text"]["signal"]


def test_every_setting_that_is_offered_can_be_filled():
    offered = {control.name: control.values for control in page.filling_controls()}
    names = ("fill_features", "fill_dim", "fill_again")
    for values in product(*(offered[name] for name in names)):
        config = page.fill_config(settings(fill_keys=4, **dict(zip(names, values, strict=True))))
        assert all(fill(config, rule).reads.isfinite().all() for rule in UPDATE_RULES)
    assert page.fill_config(settings(fill_keys=4, fill_again=8)).n_again == 4


def test_losses_and_shares_are_of_every_rule_and_colours_are_those_of_the_rules():
    config = page.fill_config(settings())
    fillings = {rule: fill(config, rule) for rule in UPDATE_RULES}
    losses, overwritten = (
        filling_charts.losses_chart(fillings),
        filling_charts.overwrite_chart(fillings),
    )
    frame, shares = pl.DataFrame(with_field(losses, "loss")), with_field(overwritten, "share")
    for rule, filling in fillings.items():
        drawn = frame.filter(pl.col("rule") == rule).sort("n_writes")["loss"].to_list()
        assert drawn == pytest.approx(filling.losses.tolist(), rel=1e-4, abs=1e-9)
        parts = {one["part"]: one["share"] for one in shares if one["rule"] == rule}
        assert parts == pytest.approx(filling.shares(), rel=1e-4, abs=1e-9)
    scale = filling_charts._rule_colour(fillings).to_dict()["scale"]
    colours = [style.colour(name) for name in ("dpfp", "delta", "fwm")]
    assert (scale["domain"], scale["range"]) == (list(UPDATE_RULES), colours)
    none = {rule: fill(page.fill_config(settings(fill_again=0)), rule) for rule in UPDATE_RULES}
    assert "none" in str(filling_charts.overwrite_chart(none).to_dict()["title"])


def test_a_view_leaves_the_number_of_threads_as_it_was():
    torch.set_num_threads(2)
    try:
        page.memory_view(settings(fill_seed=9))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def row(config, experiment="capacity", loss=0.02, seed=0):
    curve = {"step": [100, 200], "loss": [0.4, loss]}
    summary = {"n_steps": 200, "final_loss": 0.4, "best_loss": loss, "reported_loss": loss}
    summary |= {"solved": False, "reason": "no progress"}
    return store.make_row(experiment, "live", config, seed, "ok", summary, curve)


def test_runs_of_this_session_are_curves_and_points_among_the_recorded():
    jobs = page.live_jobs(TRAINING)
    rows = [row(job.config, loss=0.01 * i) for i, job in enumerate(jobs, start=1)]
    frame = pl.DataFrame(with_field(charts.training_chart(rows), "step"))
    assert set(frame["series"]) == {"softmax", "linear (sum)", "DPFP-1 (sum)"}
    assert sorted(frame.filter(pl.col("step") == 200)["value"]) == [0.01, 0.02, 0.03]
    shown = page.recorded_charts({"capacity": [], "update_rules": []}, rows)
    assert [*page.RETRIEVAL_SETTINGS, "keys solved"] == list(shown)
    assert all("vega" in chart.text for chart in shown.values())
    beside = shown["keys come back"]
    assert page.training_view(rows, beside).text.count("vega") > beside.text.count("vega")
    assert "Nothing has run yet" in page.training_view([], beside).text


def test_the_cards_say_what_this_session_found_and_that_it_found_nothing_yet(data):
    recorded = capacity.CLAIM.recorded(), update_rules.CLAIM.recorded()
    cards = "".join(one.cards([]).text for one in recorded)
    assert cards.count("Nothing has run yet") == 3
    (job,) = page.live_jobs(TRAINING | {"attention": ("DPFP-1",)})
    cards = "".join(one.cards([row(job.config, loss=5e-4)]).text for one in recorded)
    assert cards.count("Nothing has run yet") == 1 and "with DPFP-1" in cards


def test_with_the_most_steps_a_memory_is_trained_as_recorded():
    known = {run for job in EXPERIMENTS["capacity"].jobs("laptop") for run in job.ids}
    features = {"attention": ("softmax", "DPFP-2", "FAVOR+ 64")}
    assert {job.ids[0] for job in page.live_jobs(TRAINING | features)} <= known
