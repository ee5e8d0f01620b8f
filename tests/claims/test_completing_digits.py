"""The notebook's digits: what is drawn is the models', and what is missing is said."""

import re

import marimo as mo
import pytest
import torch

from replib import files
from replib.claims.images import page as digits
from replib.claims.images.charts import bits_chart
from replib.lab.kept_models import complete
from replib.lab.recorded import recorded_rows
from replib.pages import style
from replib.pages.controls import initial_values
from replib.tasks.image_files import load_images

SETTINGS = initial_values(digits.choices())[0]


@pytest.fixture(scope="module")
def models():
    return digits.kept_models()[0]


def test_the_models_draw_what_is_shown_and_what_is_kept_is_of_one_size_or_grows(models):
    given = load_images("digits").test[7].flatten()[:32].long().expand(digits.N_COMPLETIONS, -1)
    kept_bytes = {}
    for name, kept in models.items():
        found = digits.completed(kept, SETTINGS | {"digit": 7, "draw_seed": 2})
        *_, expected = complete(kept, given, generator=torch.Generator().manual_seed(2))
        assert found.levels == expected.tolist() and len(found.token_ms) == 32
        kept_bytes[name] = found.kept_bytes
    assert len(set(kept_bytes["linear"])) == 1
    assert kept_bytes["softmax"][63] == 64 * kept_bytes["softmax"][0] > kept_bytes["linear"][63]


@pytest.mark.parametrize("rows_given", [0, 1, 7])
def test_each_pixel_that_is_not_given_appears_with_its_token(models, rows_given):
    linear = {"linear": models["linear"]}
    text = mo.as_html(digits.completion(linear, SETTINGS | {"rows_given": rows_given})).text
    appearing = [int(i) for i in re.findall(r'class="r-drawn" style="--i:(\d+)"', text)]
    n_drawn = 64 - 8 * rows_given
    assert sorted(set(appearing)) == [*range(n_drawn)]
    assert len(appearing) == 3 * n_drawn  # pixels, bytes kept and time of each token
    assert style.colour("linear") in text and style.colour("softmax") not in text


def test_a_static_page_has_no_times_and_nothing_kept_is_said(models, monkeypatch, data, tmp_path):
    assert "ms a token" in digits.completion(models, SETTINGS).text
    monkeypatch.setattr(digits.layout, "in_static_page", lambda: True)
    monkeypatch.setattr(digits, "_TAKES", iter([7, 7]))
    first, second = (digits.completion(models, SETTINGS).text for _ in range(2))
    assert first == second and "ms a token" not in first
    monkeypatch.setattr(files, "ROOT", tmp_path)
    none, said = digits.kept_models()
    assert none == {} and said.text.count("record images --scale laptop") == 2
    assert "No trained model" in digits.completion(none, SETTINGS).text


def test_the_recorded_rows_are_drawn():
    description = bits_chart(recorded_rows("images")).to_dict()["description"]
    assert "Bits per dimension" in description
