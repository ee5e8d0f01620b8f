"""The picture of the start page."""

import html
import re

import pytest
import torch

from replib.pages import step_through


def text(picture):
    return re.sub(r"\s+", " ", html.unescape(re.sub("<[^>]*>", " ", picture.text)))


@pytest.mark.parametrize("feature_map", step_through.FEATURE_MAPS)
def test_matrix_and_rnn_agree_at_every_position(feature_map):
    walk = step_through.walk(12, 4, feature_map)
    torch.testing.assert_close(walk.by_matrix, walk.by_rnn)
    torch.testing.assert_close(walk.weights.tril(), walk.weights)
    assert walk.state_numbers == walk.s.shape[1] * (4 + 1)


def test_the_costs_are_those_of_the_tensors_that_are_kept():
    walk = step_through.walk(12, 4, "dpfp2")
    said = text(step_through.picture(walk, 7))
    assert f"bytes kept {4 * 2 * 7 * 4:,} {4 * (16 * 4 + 16):,}" in said
    assert "Row 7 has 7 weights" in said and "S (16 × 4) and z (16)" in said


def test_the_first_dearer_position_is_the_first():
    for limit in (16, 20, 4160):
        first = step_through.first_above(step_through.cache_numbers, limit, 4)
        assert step_through.cache_numbers(first, 4) > limit
        assert step_through.cache_numbers(first - 1, 4) <= limit
