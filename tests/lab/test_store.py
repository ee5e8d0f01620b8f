"""The store loses nothing, tears nothing, and says what it skips."""

import errno
import json
import math
import os
import subprocess
import sys
import warnings
from dataclasses import dataclass, field

import pytest

from replib import files
from replib.lab import provenance, store

WRITER = """
import sys
from replib.lab import store
folder, writer = sys.argv[1], int(sys.argv[2])
for seed in range(150):
    curve = {"step": list(range(400)), "loss": [seed + 0.123456789] * 400}
    row = dict(run_id=f"{writer}-{seed}", experiment="copy", scale="live", config={}, seed=seed,
               provenance={}, outcome="ok", detail=None, summary={}, curve=curve)
    store.append("copy", row, folder)
"""


@dataclass(frozen=True, kw_only=True)
class Inner:
    n_heads: int = 4


@dataclass(frozen=True, kw_only=True)
class Config:
    seq_len: int = 128
    learning_rate: float = 1e-3
    inner: Inner = field(default_factory=Inner)


@dataclass(frozen=True, kw_only=True)
class OtherInner(Inner):
    """The same fields under another name."""


def row(seed=0, **changes):
    return {
        "run_id": f"run{seed}",
        "experiment": "copy",
        "scale": "live",
        "config": {"seq_len": 8},
        "seed": seed,
        "provenance": {"device": "cpu"},
        "outcome": "ok",
        "detail": None,
        "summary": {"loss": 0.5},
        "curve": None,
        "kind": None,
        "versions": None,
        "former_id": None,
    } | changes


def said_of(folder):
    """What is said of the lines that are skipped."""
    content = store.read("copy", folder)
    return store.skipped_text("copy", content.problems, len(content.rows))


def seeds(folder):
    return [r["seed"] for r in store.read_rows("copy", folder)]


def test_two_concurrent_writers_lose_and_tear_nothing(tmp_path):
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    writers = [subprocess.Popen([*command, str(writer)]) for writer in range(2)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a reader in between sees whole lines only
        while any(writer.poll() is None for writer in writers):
            store.read_rows("copy", tmp_path)
        rows = store.read_rows("copy", tmp_path)
    assert [writer.returncode for writer in writers] == [0, 0]
    for writer in range(2):
        own = [r for r in rows if r["run_id"].startswith(f"{writer}-")]
        assert [r["seed"] for r in own] == list(range(150))
        assert all(r["curve"]["loss"] == [r["seed"] + 0.123456789] * 400 for r in own)


def test_a_row_after_a_torn_line_is_not_glued_to_it(tmp_path):
    store.append("copy", row(0), tmp_path)
    with (tmp_path / "copy.jsonl").open("ab") as file:
        file.write(b'{"run_id": "torn", "experi')
    store.append("copy", row(1), tmp_path)
    with pytest.warns(
        UserWarning, match=r"copy\.jsonl: 1 of 3 lines skipped: line 2 .torn"
    ) as caught:
        assert seeds(tmp_path) == [0, 1]
    assert len(caught) == 1


@pytest.mark.parametrize(
    "foreign, why",
    [
        (b"<<<<<<< HEAD", "torn or no JSON"),
        (b"\x00\xff\xfe garbage", "torn or no JSON"),
        (b"[1, 2]", "not an object"),
        (b'{"hello": "world"}', "lacks 'run_id'"),
        (b"[" * 100_000, "torn or no JSON"),
        (json.dumps(row(experiment="other")).encode(), "experiment is 'other'"),
        (json.dumps(row(outcome="fine")).encode(), "outcome is 'fine'"),
        (json.dumps(row(config=[1])).encode(), "config is"),
        (json.dumps(row(newer=1)).encode(), "unknown column 'newer'"),
        (json.dumps(row(detail="\ud800")).encode(), "holds the text"),
        (json.dumps(row(detail="\x1b[2J")).encode(), "holds the text"),
        (json.dumps(row(summary={"loss": 10**30})).encode(), "number of 100 bits"),
        (json.dumps(row(summary={"loss": 1e300})).encode(), "the number 1e.300"),
        (json.dumps(row(seed=True)).encode(), "seed is True"),
        (b'{"seed": 1, ' + json.dumps(row()).encode()[1:], "a key twice"),
        (json.dumps(row(summary=json.loads("[" * 20 + "]" * 20))).encode(), "summary is"),
        (json.dumps(row(summary={"x": json.loads("[" * 20 + "]" * 20)})).encode(), "nested"),
        (json.dumps(row(digest="0" * 64)).encode(), "its digest is another"),
    ],
)
def test_foreign_lines_are_skipped_and_reported(tmp_path, foreign, why):
    lines = [foreign, json.dumps(row(1)).encode(), b"", foreign, json.dumps(row(2)).encode()]
    (tmp_path / "copy.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    told = f"copy.jsonl: 2 of 4 lines skipped: line 1 .*{why}.*, line 4 .*{why}"
    with pytest.warns(UserWarning, match=told) as caught:
        assert seeds(tmp_path) == [1, 2]
    assert len(caught) == 1 and "\n" not in str(caught[0].message)
    assert said_of(tmp_path) == str(caught[0].message)


def test_a_line_that_is_there_twice_counts_once(tmp_path):
    for seed in (0, 1, 0):
        store.append("copy", row(seed), tmp_path)
    assert seeds(tmp_path) == [0, 1] and not store.read("copy", tmp_path).problems


def test_no_flipped_bit_changes_a_row_unnoticed(tmp_path):
    store.append("copy", row(3, curve={"step": [1, 2], "loss": [0.125, 1e-30]}), tmp_path)
    path, (expected,) = tmp_path / "copy.jsonl", store.read_rows("copy", tmp_path)
    line, noticed = path.read_bytes(), 0
    for bit in range(0, 8 * (len(line) - 1), 7):
        flipped = bytearray(line)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        os.utime(path, ns=(bit, bit))  # a file of the same size and time is not read again
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            rows = store.read_rows("copy", tmp_path)
        assert caught or rows == [expected]  # such as 1e-30 and 1E-30
        noticed += bool(caught)
    assert noticed > len(line)


def test_rows_without_a_digest_are_read_and_counted(tmp_path):
    (tmp_path / "copy.jsonl").write_text(json.dumps(row(0)) + "\n")
    store.append("copy", row(1), tmp_path)
    assert seeds(tmp_path) == [0, 1]
    assert store.read("copy", tmp_path).n_without_digest == 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes in this file system")
@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_what_is_no_file_is_named_and_never_waited_for(tmp_path, make):
    make(tmp_path / "copy.jsonl")
    for attempt in (lambda: store.append("copy", row(), tmp_path), lambda: seeds(tmp_path)):
        with pytest.raises(files.FileError, match=r"copy\.jsonl"):
            attempt()


HOLDER = """
import fcntl, sys
with open(sys.argv[1], "ab") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.mark.skipif(not os.path.exists("/proc/locks"), reason="the holder is not to be known")
def test_who_keeps_a_file_locked_is_said_and_readers_do_not_wait(tmp_path, monkeypatch, capsys):
    store.append("copy", row(0), tmp_path)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    command = [sys.executable, "-c", HOLDER, str(tmp_path / ".locks" / "copy.jsonl")]
    with subprocess.Popen(command, **pipes) as holder:
        assert holder.stdout.readline() == b"locked\n"
        monkeypatch.setattr(store, "LOCK_SAID_AFTER_S", 0.05)
        monkeypatch.setattr(store, "LOCK_SAID_EVERY_S", 0.05)
        monkeypatch.setattr(store, "LOCK_GIVEN_UP_S", 0.4)
        with pytest.raises(files.FileError, match=f"locked by process {holder.pid} for"):
            store.append("copy", row(1), tmp_path)
        told = capsys.readouterr().err.splitlines()
        assert len(told) > 1 and all(f"by process {holder.pid} since" in line for line in told)
        assert seeds(tmp_path) == [0]
        holder.stdin.close()
        holder.wait()
    store.append("copy", row(1), tmp_path)
    assert seeds(tmp_path) == [0, 1]


def test_a_file_is_replaced_whole_and_what_was_left_aside_is_removed(tmp_path, monkeypatch):
    path = tmp_path / "text.md"
    files.replace_file(path, "before")
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left = [tmp_path / f".text.md.{pid}.0{files.ASIDE}" for pid in (dead.pid, os.getpid())]
    for one in left:
        one.touch()
    files.replace_file(path, b"after")
    assert path.read_bytes() == b"after" and [one.exists() for one in left] == [False, True]
    left[1].unlink()

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(files.FileError, match="disk full"):
        files.replace_file(path, "half")
    assert path.read_bytes() == b"after" and list(tmp_path.iterdir()) == [path]


def test_what_is_written_aside_goes_through_no_link_that_was_laid(tmp_path, monkeypatch):
    """Names cannot be guessed; and one that is guessed is not opened."""
    monkeypatch.setattr(files.secrets, "token_hex", lambda n: "known")
    aside = tmp_path / f".text.md.{os.getpid()}.known{files.ASIDE}"
    aside.symlink_to(tmp_path / "victim")
    with pytest.raises(files.FileError):
        files.replace_file(tmp_path / "text.md", "text")
    assert not (tmp_path / "victim").exists()


def test_windows_line_ends_are_no_foreign_lines(tmp_path):
    (tmp_path / "copy.jsonl").write_bytes(json.dumps(row(1)).encode() + b"\r\n")
    assert seeds(tmp_path) == [1]


def test_a_missing_file_or_folder_has_no_rows(tmp_path):
    assert store.read_rows("copy", tmp_path) == []
    assert store.read_rows("copy", tmp_path / "missing") == []


def test_reading_again_sees_new_rows_and_gives_a_list_of_its_own(tmp_path):
    store.append("copy", row(0), tmp_path)
    store.read_rows("copy", tmp_path).clear()
    assert seeds(tmp_path) == [0]
    store.append("copy", row(1), tmp_path)
    assert seeds(tmp_path) == [0, 1]


def test_a_folder_below_a_file_is_named_with_the_remedy(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("REPLIB_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(files.FileError, match="file.*REPLIB_CACHE"):
        store.append("copy", row(), files.cache_folder())
    with pytest.raises(files.FileError, match="REPLIB_CACHE"):
        store.read_rows("copy", files.cache_folder())


@pytest.mark.parametrize("torn", [b"", b'{"torn'])
@pytest.mark.parametrize("part", [0, 10, None])
def test_a_full_disk_leaves_the_file_as_it_was(tmp_path, monkeypatch, part, torn):
    store.append("copy", row(0), tmp_path)
    path = tmp_path / "copy.jsonl"
    path.write_bytes(path.read_bytes() + torn)
    before, write = path.read_bytes(), os.write

    def full(descriptor, line):
        if part is None:  # all is taken, and only the flush finds the disk full
            return write(descriptor, line)
        if part:
            return write(descriptor, line[:part])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def no_flush(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(store.os, "write", full)
    if part is None:
        monkeypatch.setattr(files.os, "fsync", no_flush)
    with pytest.raises(files.FileError, match="free space or set REPLIB_DATA"):
        store.append("copy", row(1), tmp_path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"outcome": "fine"}, "fine.*out_of_memory"),
        ({"seed": "0"}, "seed is '0', not int"),
        ({"summary": None}, "summary"),
        ({"loss": 1.0}, "unknown columns.*loss"),
        ({"experiment": "other"}, "other"),
        ({"config": {"lr": object()}}, "no JSON form"),
    ],
)
def test_a_row_that_is_none_is_refused(tmp_path, bad, message):
    with pytest.raises(ValueError, match=message):
        store.append("copy", row(**bad), tmp_path)
    assert not (tmp_path / "copy.jsonl").exists()


@pytest.mark.parametrize("name", ["", "../copy", "Copy", "a-b", "a.b", "copy\n", None])
def test_an_experiment_name_is_no_path(tmp_path, name):
    with pytest.raises(ValueError, match="lower-case"):
        store.append(name, row(), tmp_path)
    with pytest.raises(ValueError, match="lower-case"):
        store.read_rows(name, tmp_path)


def test_numbers_that_are_not_finite_read_back_as_none(tmp_path):
    diverged = row(
        outcome="diverged",
        summary={"loss": math.nan, "nested": [math.inf, 1.5]},
        curve={"step": [1, 2], "loss": [2.0, -math.inf]},
    )
    store.append("copy", diverged, tmp_path)
    line = (tmp_path / "copy.jsonl").read_text()
    json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    (read,) = store.read_rows("copy", tmp_path)
    assert read["summary"] == {"loss": None, "nested": [None, 1.5]}
    assert read["curve"]["loss"] == [2.0, None]


def test_numpy_and_torch_values_are_stored_as_numbers(tmp_path):
    import numpy as np
    import torch

    summary = {"a": np.float32(0.5), "b": torch.tensor([1, 2]), "c": np.bool_(True)}
    store.append("copy", row(summary=summary), tmp_path)
    assert store.read_rows("copy", tmp_path)[0]["summary"] == {"a": 0.5, "b": [1, 2], "c": True}


@pytest.mark.parametrize("n_points", [0, 1, 399, 400, 401, 1000, 12345])
def test_thin_keeps_ends_and_extremes_in_at_most_400_points(n_points):
    loss = [math.sin(i / 7) for i in range(n_points)]
    if n_points > 400:
        loss[n_points // 3 + 1], loss[n_points // 2 + 1] = 9.0, -9.0
        loss[5], loss[6] = math.nan, None
    thinned = store.thin({"step": list(range(n_points)), "loss": loss})
    steps = thinned["step"]
    assert len(steps) == len(thinned["loss"]) == min(len(set(steps)), 400)
    assert steps == sorted(steps)
    assert all(thinned["loss"][i] is loss[step] for i, step in enumerate(steps))
    if n_points > 400:
        assert len(steps) > 390
        assert {0, n_points - 1, n_points // 3 + 1, n_points // 2 + 1} <= set(steps)
    else:
        assert len(steps) == n_points


def test_thin_refuses_columns_of_different_lengths():
    with pytest.raises(ValueError, match="'loss': 1"):
        store.thin({"step": [1, 2], "loss": [0.5]})


def test_run_id_follows_kind_config_seed_and_versions():
    runs = [
        ("training", Config(), 0, {"a": 1}),
        ("cost", Config(), 0, {"a": 1}),
        ("training", Config(), 1, {"a": 1}),
        ("training", Config(), 0, {"a": 2}),
        ("training", Config(), 0, {"a": 0}),
        ("training", Config(), 0, {"b": 2}),
        ("training", Config(seq_len=64), 0, {"a": 1}),
        ("training", Config(inner=Inner(n_heads=8)), 0, {"a": 1}),
        ("training", Config(inner=OtherInner()), 0, {"a": 1}),
        ("training", {"seq_len": True}, 0, {"a": 1}),
        ("training", {"seq_len": 1}, 0, {"a": 1}),
        ("training", {"seq_len": "1"}, 0, {"a": 1}),
    ]
    identities = [store.run_id(*run) for run in runs]
    assert len(set(identities)) == len(runs)
    assert all(len(identity) == 16 and int(identity, 16) >= 0 for identity in identities)


def test_run_id_ignores_spelling():
    a = {"x": 32, "y": (1, 2), "z": 0.1}
    b = {"z": 0.1, "y": [1.0, 2], "x": 32.0}
    assert store.run_id("cost", a, 0, {}) == store.run_id("cost", b, 0, {})


def test_a_field_or_a_part_that_is_added_later_leaves_runs_what_they_were():
    @dataclass(frozen=True, kw_only=True)
    class Later(Config):
        added: float | None = None

    before = store.run_id("training", Config(seq_len=64), 0, {"a": 2})
    assert store.run_id("training", Later(seq_len=64), 0, {"a": 2, "b": 1}) == before
    assert store.run_id("training", Later(seq_len=64, added=0.0), 0, {"a": 2}) != before


def test_a_row_is_of_versions_where_none_differs():
    def made(versions):
        return {"versions": versions}

    assert store.of_versions(made({"a": 1, "b": 2}), {"b": 2})
    assert store.of_versions(made({}), {"a": 1})
    assert not store.of_versions(made({"a": 0}), {"a": 1})
    assert not store.of_versions(made({"a": 2}), {})
    assert not store.of_versions({}, {}) and not store.of_versions(made(None), {})


def test_make_row_is_self_contained_and_can_be_appended(tmp_path):
    curve = {"step": list(range(1000)), "loss": [1.0] * 999 + [math.nan]}
    made = store.make_row(
        "copy", "smoke", Config(), 3, "diverged", {"loss": math.nan}, curve, versions={"a": 2}
    )
    store.append("copy", made, tmp_path)
    assert store.read_rows("copy", tmp_path) == [made]
    assert list(made) == list(store.COLUMNS)
    assert made["config"] == {"seq_len": 128, "learning_rate": 1e-3, "inner": {"n_heads": 4}}
    assert made["run_id"] == store.run_id("", Config(), 3, {"a": 2})
    assert made["versions"] == {"a": 2} and made["former_id"] is None
    assert len(made["curve"]["step"]) <= 400 and made["curve"]["loss"][-1] is None


def test_provenance_names_the_device_but_no_host_user_or_path():
    known = provenance.provenance("cpu")
    assert known["device"] == "cpu" and known["device_name"] and known["threads"] >= 1
    assert known["started"].endswith("+00:00")
    expected = (
        "commit dirty python torch numpy device device_name cpu_capability threads cores started"
    )
    assert list(known) == expected.split()
    assert str(files.ROOT) not in json.dumps(known)


def test_commit_and_dirty_follow_tracked_files_of_the_package(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "ROOT", tmp_path)

    def state():
        provenance._git_state.cache_clear()
        return provenance._git_state()

    def git(*arguments):
        who = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        subprocess.run(["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True)

    try:
        assert state() == (None, None)
        git("init")
        assert state() == (None, None)  # no commit yet
        (tmp_path / "replib").mkdir()
        (tmp_path / "replib" / "a.py").write_text("x = 1\n")
        git("add", ".")
        git("commit", "-m", "first")
        (tmp_path / "replib" / "untracked.py").touch()
        (tmp_path / "data.jsonl").touch()
        commit, dirty = state()
        assert len(commit) == 12 and dirty is False
        (tmp_path / "replib" / "a.py").write_text("x = 2\n")
        assert state() == (commit, True)
    finally:
        provenance._git_state.cache_clear()


def test_folders_follow_the_environment(tmp_path, monkeypatch):
    for variable, folder in (
        ("REPLIB_DATA", files.data_folder),
        ("REPLIB_CACHE", files.cache_folder),
    ):
        monkeypatch.delenv(variable, raising=False)
        assert folder().parent == files.ROOT
        monkeypatch.setenv(variable, str(tmp_path / variable))
        assert folder() == tmp_path / variable
    store.append("copy", row())
    assert (tmp_path / "REPLIB_DATA" / "copy.jsonl").exists()
    assert seeds(None) == [0]


def test_importing_the_store_brings_no_torch_polars_or_marimo():
    heavy = {"torch", "polars", "marimo", "altair"}
    code = f"import sys, replib.lab.store; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
