"""The notebook's drawing section: what it draws is the models', and what is missing is said."""

import marimo as mo
import pytest
import torch

from replib import files
from replib.claims.images import page as parts
from replib.claims.images.charts import bits_chart
from replib.lab.kept_models import draw
from replib.lab.recorded import recorded_rows
from replib.pages.controls import initial_values
from replib.tasks.image_files import load_images

SETTINGS = initial_values(parts.choices())[0]


@pytest.fixture(scope="module")
def models():
    return parts.kept_models()[0]


def shown(monkeypatch, models, *, slowly=False, **changes):
    """The frames that a completion puts into its charts, the last being the one that stays."""
    drawn = []
    original = parts.charts.digits_chart
    monkeypatch.setattr(
        parts.charts,
        "digits_chart",
        lambda frame, **options: (drawn.append(frame), original(frame, **options))[1],
    )
    monkeypatch.setattr(mo.output, "replace", lambda chart: None)
    monkeypatch.setattr(parts, "PAUSE_S", 0)
    page = parts.completion(models, SETTINGS | changes, slowly=slowly)
    return drawn, mo.as_html(page).text


def levels_of(frame, attention):
    drawn = frame.filter(frame["attention"] == attention).sort("image", "order")
    return (drawn["level"] * 16).round().cast(int).to_list()


def test_the_models_draw_what_the_chart_shows(models, monkeypatch):
    (frame,), _ = shown(monkeypatch, models, digit=7, draw_seed=2)
    given = load_images("digits").test[7].flatten()[:32].long().expand(parts.N_COMPLETIONS, -1)
    for name, kept in models.items():
        expected = draw(kept, given, generator=torch.Generator().manual_seed(2)).levels
        assert levels_of(frame, name) == expected.flatten().tolist()


def test_drawing_slowly_adds_a_pixel_at_a_time_and_ends_with_the_same_image(models, monkeypatch):
    slow, _ = shown(monkeypatch, models, slowly=True, rows_given=6)
    n_strips = len(models) * parts.N_COMPLETIONS
    assert [len(frame) for frame in slow] == [64 + n_strips * n for n in [*range(48, 65), 64]]
    assert slow[-1].equals(slow[-2])


@pytest.mark.parametrize("rows_given", [0, 1, 7])
def test_one_mechanism_alone_is_drawn(models, monkeypatch, rows_given):
    (frame,), _ = shown(monkeypatch, models, drawn_by=("linear",), rows_given=rows_given)
    assert set(frame["attention"].drop_nulls()) == {"linear"}


def test_nothing_chosen_and_nothing_kept_are_said(data, tmp_path, models, monkeypatch):
    assert "Choose at least one" in shown(monkeypatch, models, drawn_by=())[1]
    monkeypatch.setattr(files, "ROOT", tmp_path)
    none, said = parts.kept_models()
    assert none == {} and said.text.count("record images --scale laptop") == 2
    assert "Choose at least one" in shown(monkeypatch, none)[1]


def test_drawing_leaves_the_number_of_threads_as_it_was(models, monkeypatch):
    torch.set_num_threads(2)
    try:
        shown(monkeypatch, models)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_the_recorded_rows_are_drawn():
    description = bits_chart(recorded_rows("images")).to_dict()["description"]
    assert "Bits per dimension" in description
