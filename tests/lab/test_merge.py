"""Rows that are brought home are added once, and what is no such row is refused with a reason."""

import json
import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from small import cost_job, experiment_of, tiny

from replib import files
from replib.lab import store
from replib.lab.kept_models import load_model
from replib.lab.merge import merge
from replib.lab.record import record


@pytest.fixture
def brought(data, tmp_path, monkeypatch):
    """A folder with four rows from elsewhere; `data/` is empty."""
    elsewhere = tmp_path / "visit"
    with monkeypatch.context() as patch:
        patch.setenv("REPLIB_DATA", str(elsewhere))
        list(record(experiment_of(tiny(), cost_job()), "smoke", device="cpu"))
    return elsewhere


def lines(folder):
    return (folder / "tiny.jsonl").read_bytes().splitlines(keepends=True)


def test_rows_are_added_as_they_are_and_not_twice(brought, data):
    merged = merge(brought, {"tiny"})
    assert merged.added == {"tiny": 4} and merged.refused == []
    assert lines(data) == lines(brought)
    again = merge(brought, {"tiny"})
    assert again.added == {} and again.n_double == len(again.refused) == 4
    assert again.refused[0] == "tiny.jsonl, line 1: is here already"
    assert lines(data) == lines(brought)


def test_two_merges_at_once_add_every_row_once(brought, data, monkeypatch):
    append, both = store.append_rows, threading.Barrier(2)

    def slow(*rows):
        time.sleep(0.2)
        append(*rows)

    def one(_):
        both.wait()
        return merge(brought, {"tiny"})

    monkeypatch.setattr(store, "append_rows", slow)
    with ThreadPoolExecutor(2) as threads:
        merged = list(threads.map(one, range(2)))
    assert sorted(len(one.refused) for one in merged) == [0, 4]
    assert lines(data) == lines(brought)


def test_a_file_that_cannot_be_read_is_told_and_the_others_are_added(brought, data):
    (brought / "aa.jsonl").mkdir()
    os.mkfifo(brought / "zz.jsonl")  # would be waited for
    merged = merge(brought, {"tiny", "zz"})
    assert merged.added == {"tiny": 4} and merged.n_double == 0
    why = "cannot be read ({})".format
    told = {"aa": "Is a directory", "zz": "it is no regular file"}
    assert merged.refused == [f"{name}.jsonl: {why(text)}" for name, text in told.items()]


def test_what_was_added_before_the_disk_was_full_is_told(models, data, monkeypatch):
    def full(name, text):
        raise files.FileError("disk full")

    monkeypatch.setattr("replib.lab.kept_models.write_model", full)
    merged = merge(models, {"images"})
    assert merged.added["images"] > 0 and merged.models == []
    assert merged.refused[-1] == "models/images_softmax.txt: disk full"


@pytest.fixture
def models(data, tmp_path):
    """A folder with the kept models and the rows of images of the repository; `data/` is empty."""
    folder = tmp_path / "models_visit"
    shutil.copytree(files.ROOT / "data" / "models", folder / "models")
    shutil.copy(files.ROOT / "data" / "images.jsonl", folder)
    return folder


def test_kept_models_are_added_with_the_rows_of_their_runs_and_not_twice(models, data):
    names = ["images_linear.txt", "images_softmax.txt"]
    assert merge(models, {"images"}).models == names
    for name in names:
        assert (data / "models" / name).read_bytes() == (models / "models" / name).read_bytes()
    again = merge(models, {"images"})
    assert again.models == [] and again.refused[-1] == "models/images_softmax.txt: is here already"
    assert len(again.refused) == again.n_double


def test_a_kept_model_that_is_torn_or_of_another_run_is_refused(models, data):
    linear, softmax = (models / "models" / f"images_{name}.txt" for name in ("linear", "softmax"))
    shutil.copy(softmax, models / "models" / "images_relu.txt")
    linear.write_bytes(linear.read_bytes()[:-500])
    rows = (models / "images.jsonl").read_bytes().splitlines(keepends=True)
    run = load_model("softmax").header["run_id"].encode()
    (models / "images.jsonl").write_bytes(b"".join(row for row in rows if run not in row))
    merged = merge(models, {"images"})
    assert merged.models == [] and not (data / "models").exists()
    told = [line for line in merged.refused if line.startswith("models/")]
    assert told == [
        "models/images_linear.txt: is torn, changed, or of a model that is not built here",
        "models/images_relu.txt: is not named images_softmax.txt, as its mechanism is",
        f"models/images_softmax.txt: its run {run.decode()} is not recorded here",
    ]


def test_what_is_no_model_file_is_refused_and_the_others_are_added(models, data):
    os.mkfifo(models / "models" / "images_elu.txt")  # would be waited for
    (models / "models" / "images_relu.txt").write_text("# " + "[" * 200_000)
    odd = models / "models" / "images_linear.txt"
    first, weights = odd.read_text().split("\n", 1)
    header = json.loads(first.removeprefix("# ")) | {"experiment": ["images"]}
    odd.write_text(f"# {json.dumps(header)}\n{weights}")
    merged = merge(models, {"images"})
    assert merged.models == ["images_softmax.txt"]
    assert [line for line in merged.refused if line.startswith("models/")] == [
        "models/images_elu.txt: cannot be read (it is no regular file)",
        "models/images_linear.txt: is torn, changed, or of a model that is not built here",
        "models/images_relu.txt: is torn, changed, or of a model that is not built here",
    ]


def test_the_model_of_another_run_that_is_kept_here_stays(models, data):
    there = models / "models" / "images_softmax.txt"
    first, weights = there.read_text().split("\n", 1)
    other = json.dumps(json.loads(first.removeprefix("# ")) | {"run_id": "0" * 16})
    (data / "models").mkdir()
    (data / "models" / "images_softmax.txt").write_text(f"# {other}\n{weights}")
    merged = merge(models, {"images"})
    assert merged.models == ["images_linear.txt"]
    assert "the model of another run is kept here, 0000000000000000" in merged.refused[-1]


def test_a_run_that_is_recorded_here_is_not_added_beside_it(brought, data):
    list(record(experiment_of(tiny()), "smoke", device="cpu"))
    merged = merge(brought, {"tiny"})
    assert merged.added == {"tiny": 3} and merged.n_double == 1
    assert "is recorded here already" in merged.refused[0]


def changed(row, **changes):
    """A line with a digest of its own, as of another hand."""
    row = {name: row[name] for name in store.COLUMNS} | changes
    return json.dumps(row | {store.DIGEST: store.row_digest(row)}).encode() + b"\n"


def with_lines(folder, *some):
    (folder / "tiny.jsonl").write_bytes(b"".join(some))


@pytest.mark.parametrize(
    "spoil, reason",
    [
        (lambda line, row: line[: len(line) // 2], "torn or no JSON"),
        (lambda line, row: line.replace(b'"seed":0', b'"seed":7'), "its digest is another"),
        (
            lambda line, row: json.dumps(row).encode() + b"\n",
            "has no digest, so that it cannot be told whether it is whole",
        ),
        (lambda line, row: changed(row, seed=7), "its run_id is not that of its config"),
        (lambda line, row: changed(row, kind="dance"), "its kind is 'dance'"),
        (lambda line, row: changed(row, experiment="other"), "experiment is 'other'"),
        (lambda line, row: changed(row, summary={"n_steps": 20}), "final_loss"),
        (lambda line, row: changed(row, outcome="interrupted"), "is of a run that was stopped"),
    ],
)
def test_a_line_that_is_no_whole_row_of_ours_is_refused_and_the_others_are_added(
    brought, data, spoil, reason
):
    first, *others = lines(brought)
    (row, *_) = store.read_rows("tiny", brought)
    with_lines(brought, *others, spoil(first, row))
    merged = merge(brought, {"tiny"})
    assert merged.added == {"tiny": 3} and merged.n_double == 0
    (told,) = merged.refused
    assert told.startswith("tiny.jsonl, line 4: ") and reason in told
    assert len(store.read_rows("tiny", data)) == 3


def test_rows_of_other_versions_are_refused(brought, data):
    (row, *_) = store.read_rows("tiny", brought)
    versions = row["versions"] | {"models": 99}
    from replib.lab.run import config_of

    run = store.run_id(row["kind"], config_of(row), row["seed"], versions)
    with_lines(brought, changed(row, versions=versions, run_id=run))
    (told,) = merge(brought, {"tiny"}).refused
    assert "was computed by other versions than here" in told
    assert not (data / "tiny.jsonl").exists()


def test_what_is_of_no_experiment_is_refused(brought, data):
    merged = merge(brought, {"convergence"})
    assert merged.added == {} and len(merged.refused) == 4
    assert "is of no experiment that this program has" in merged.refused[0]


def test_a_folder_without_rows_is_a_mistake(data, tmp_path):
    for folder, told in (
        (tmp_path / "nowhere", "is no folder"),
        (tmp_path, "has no files of rows"),
        (files.data_folder(), "is the data folder itself"),
    ):
        with pytest.raises(ValueError, match=told):
            merge(folder, {"tiny"})
