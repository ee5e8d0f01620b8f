"""The gallery's cards show recorded charts, in their shape."""

import struct

import pytest

from replib import gallery, report


@pytest.fixture(scope="module")
def figures():
    return report.figures()


def size_of(png: bytes) -> tuple[int, int]:
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", png[16:24])


def test_every_picture_is_of_a_notebook_and_every_notebook_has_one():
    notebooks = {path.stem for path in report.NOTEBOOKS.glob("[0-9]*.py")}
    assert set(gallery.PICTURES) == notebooks


def test_pictures_have_the_shape_of_a_card_and_are_the_same_each_time(figures, tmp_path):
    written = gallery.write_gallery(figures, tmp_path)
    assert {path.parent.name for path in written} >= {"01_convergence", "03_speed_crossover"}
    for path in written:
        width, height = size_of(path.read_bytes())
        assert width / height == pytest.approx(gallery.ASPECT, rel=0.02)
        assert 300 < height < 700
    before = [path.read_bytes() for path in written]
    assert before == [path.read_bytes() for path in gallery.write_gallery(figures, tmp_path)]


def test_a_notebook_without_rows_keeps_marimos_own_picture(figures, tmp_path):
    some = {name: figures[name] for name in ("scaling_time",)}
    assert [path.parent.name for path in gallery.write_gallery(some, tmp_path)] == [
        "02_linear_scaling"
    ]


def test_a_picture_has_neither_legend_nor_title(figures):
    specification = gallery._specification(figures["convergence_64"], 700)
    assert '"legend": null' in specification and '"legend": {' not in specification
    assert '"title"' not in specification[: specification.index('"layer"')]
