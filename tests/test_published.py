import json

import pytest

from replib import published as module
from replib.published import published

BLOCKS_OF_ANOTHER_BLOCK = {"dm2022_defects"}  # a list; its source is the dm2022 block


@pytest.fixture(autouse=True)
def _fresh_cache():
    published.cache_clear()
    yield
    published.cache_clear()


def test_every_block_names_its_source():
    for name, block in published().items():
        if name == "_about" or name in BLOCKS_OF_ANOTHER_BLOCK:
            continue
        sources = [block, *(part for part in block.values() if isinstance(part, dict))]
        assert any({"source", "repo", "arxiv"} & part.keys() for part in sources), name


def test_file_holds_no_absolute_path():
    text = module.PUBLISHED_FILE.read_text(encoding="utf-8")
    strings = [word for word in text.replace('"', " ").split() if word.startswith("/")]
    assert [word for word in strings if len(word) > 1 and word[1].isalpha()] == []


def test_article_ratios_follow_from_its_table():
    article = published()["dm2022"]
    ratios = [b / a for a, b in zip(article["softmax_s"], article["linear_s"], strict=True)]
    assert ratios == pytest.approx(article["ratio_linear_softmax"], abs=0.006)
    assert len(article["N"]) == len(article["softmax_s"]) == 4


def test_paper_speedups_follow_from_its_throughputs():
    for table in ("table1_mnist", "table2_cifar10"):
        rows = published()["katharopoulos2020"][table]["rows"]
        _, images_per_s, speedup = rows["linear"]
        assert images_per_s / rows["softmax"][1] == pytest.approx(speedup, rel=0.002)


def test_paper_figure_1_spans_512_to_65536():
    figure = published()["katharopoulos2020"]["fig1"]
    assert figure["N"] == [2**power for power in range(9, 17)]


def test_missing_file_names_the_remedy(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "PUBLISHED_FILE", tmp_path / "published.json")
    with pytest.raises(FileNotFoundError, match="git checkout data/published.json"):
        published()


def test_broken_file_names_the_remedy(monkeypatch, tmp_path):
    broken = tmp_path / "published.json"
    broken.write_text(json.dumps({"a": 1})[:-1])
    monkeypatch.setattr(module, "PUBLISHED_FILE", broken)
    with pytest.raises(ValueError, match="git checkout data/published.json"):
        published()
