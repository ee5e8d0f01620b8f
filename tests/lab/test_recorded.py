"""What the code cannot use of recorded rows is skipped and said; the rest opens everywhere."""

import json
import random
import re
import warnings
from dataclasses import dataclass, field

import pytest
from mutants import write_mutants
from synthetic import write_recorded

import benchmarks.schema  # noqa: F401
from benchmarks import run
from replib import files
from replib.__main__ import main
from replib.claims import CLAIMS, EXPERIMENTS
from replib.claims.capacity.charts import retrieval_frame
from replib.claims.generation.charts import streams, tokens
from replib.lab import recorded, store
from replib.lab.configs import config_from
from replib.lab.recorded import recorded_rows
from replib.lab.run import config_of
from replib.models import TransformerConfig
from replib.pages import tidy

RECORDED = [n for n in (*EXPERIMENTS, "bench") if (files.ROOT / "data" / f"{n}.jsonl").exists()]
N_MUTANTS, N_WHOLE = 40, 3


def read(name):
    """The rows of an experiment, older ones too, and how many lines were skipped."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = recorded.read_rows(name) + recorded.old_rows(name)
    told = re.search(r": (\d+) of \d+ lines skipped", recorded.skipped(name) or "")
    return found, int(told[1]) if told else 0


def draw(name, found):
    """All that is made of an experiment's rows before charts."""
    if name == "bench":
        return run.recorded_table()
    kinds = {"n_keys" in row["config"].get("task", {}) for row in found}
    if True in kinds:
        return retrieval_frame(found)
    if name == "generation":
        return tokens(found), streams(found)
    if found and found[0]["curve"] is None:
        return tidy.costs(found)
    return tidy.training_curves(found), tidy.training_summaries(found)


@pytest.mark.parametrize("name", RECORDED)
def test_rows_changed_at_random_are_read_or_said_and_nothing_raises(name, data, capsys):
    write_mutants(data, name, random.Random(name), N_MUTANTS, N_WHOLE)
    found, n_skipped = read(name)
    lines = (data / f"{name}.jsonl").read_text().splitlines()
    n_whole = min(N_WHOLE, len((files.ROOT / "data" / f"{name}.jsonl").read_text().splitlines()))
    assert len(found) + n_skipped == len(lines) and len(found) >= n_whole and n_skipped
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        draw(name, found)
        for claim in CLAIMS:
            if name in claim.reads:
                recorded_of = claim.recorded()
                assert all(recorded_of.verdict(one) for one in claim.statements)
        assert main(["list"]) == 0
    assert name == "bench" or name in capsys.readouterr().out


@pytest.mark.parametrize("name", RECORDED)
def test_every_recorded_row_is_read_as_it_was_written(name):
    found, n_skipped = read(name)
    lines = (files.ROOT / "data" / f"{name}.jsonl").read_text().splitlines()
    written = [json.loads(line) for line in lines]
    assert not n_skipped
    by_id = [{one["run_id"]: one for one in rows} for rows in (found, written)]
    assert by_id[0].keys() == by_id[1].keys() and len(found) == len(written)
    for read_row, row in ((one, by_id[1][name]) for name, one in by_id[0].items()):
        for part in ("summary", "curve", "seed", "outcome", "versions", "provenance"):
            assert read_row[part] == row[part]
        assert store.plain(config_of(read_row)) == read_row["config"]
        assert contains(read_row["config"], row["config"])


def contains(whole, part):
    """Whether a config has all fields of another as they are; one that was added is more."""
    if not isinstance(part, dict):
        return whole == part
    return all(name in whole and contains(whole[name], value) for name, value in part.items())


WRONG = {
    "is not known: it is of a newer version": lambda row: row["config"].update(window=None),
    "unknown attention 'mamba'": lambda row: row["config"]["model"].update(attention="mamba"),
    "config field 'n_steps' is '3000'": lambda row: row["config"].update(n_steps="3000"),
    "config field 'compile' is 1": lambda row: row["config"].update(compile=1),
    "config field 'n_layers' is True": lambda row: row["config"]["model"].update(n_layers=True),
    "batch_size -8: use 1": lambda row: row["config"].update(batch_size=-8),
    "its config has no task": lambda row: row["config"].pop("task"),
    "missing required field `device_name`": lambda row: row["provenance"].pop("device_name"),
    "missing required field `device`": lambda row: row["provenance"].clear(),
    "Expected `int` >= 1 - at `$.threads`": lambda row: row["provenance"].update(threads=0),
    "started is 'yesterday'": lambda row: row["provenance"].update(started="yesterday"),
    "got `null` - at `$.final_loss`": lambda row: row["summary"].update(final_loss=None),
    ">= 0.0 - at `$.best_loss`": lambda row: row["summary"].update(best_loss=-1),
    "<= 1.0 - at `$.final_accuracy`": lambda row: row["summary"].update(final_accuracy=1.5),
    "columns of its curve differ": lambda row: row["curve"]["loss"].pop(),
    "its curve's loss is None": lambda row: row["curve"]["loss"].__setitem__(3, None),
    "got `str` - at `$.loss[3]`": lambda row: row["curve"]["loss"].__setitem__(3, "0.5"),
    "its curve's step falls": lambda row: row["curve"]["step"].reverse(),
    "has no curve": lambda row: row.update(curve=None),
    ">= 0 - at `$.seed`": lambda row: row.update(seed=-1),
    "at `$.scale`": lambda row: row.update(scale="<b>laptop</b>"),
}


@pytest.fixture
def training_row(data):
    """A row as it is recorded, to change."""
    path = write_recorded(data, "images") / "images.jsonl"
    return json.loads(path.read_text().splitlines()[0])


@pytest.mark.parametrize("why", WRONG)
def test_a_row_that_cannot_be_used_is_skipped_with_the_reason(data, training_row, why):
    WRONG[why](training_row)
    (data / "images.jsonl").write_text(json.dumps(training_row) + "\n")
    assert read("images") == ([], 1)
    assert why in recorded.skipped("images")


def test_a_run_that_diverged_may_have_no_losses(data, training_row):
    training_row["outcome"] = "diverged"
    training_row["summary"] |= {"final_loss": None, "best_loss": None}
    training_row["curve"]["loss"] = [None] * len(training_row["curve"]["loss"])
    (data / "images.jsonl").write_text(json.dumps(training_row) + "\n")
    assert read("images")[1] == 0


def test_a_field_that_an_older_row_lacks_has_its_default(data, training_row):
    del training_row["config"]["model"]["positions"]
    (data / "images.jsonl").write_text(json.dumps(training_row) + "\n")
    ((row,), _) = read("images")
    assert row["config"]["model"]["positions"] == TransformerConfig().positions


@dataclass(frozen=True, kw_only=True)
class Newer:
    """A config with a field that was added, and one that follows from another."""

    n: int = 1
    added: float = 0.5
    names: tuple[str, ...] = ()
    inner: TransformerConfig | None = None
    twice: int = field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "twice", 2 * self.n)


def test_a_config_is_built_again_from_its_plain_fields():
    config = config_from(Newer, {"n": 3, "names": ["a"], "inner": {"n_layers": 2}, "twice": 6})
    assert config == Newer(n=3, names=("a",), inner=TransformerConfig(n_layers=2))
    assert config_from(Newer, store.plain(config)) == config
    with pytest.raises(ValueError, match="'twice' is 7, not 6"):
        config_from(Newer, {"n": 3, "twice": 7})


def test_a_device_name_holds_no_markup(data, training_row):
    training_row["provenance"]["device_name"] = "<img src=x>  *CPU* | [1](x)"
    (data / "images.jsonl").write_text(json.dumps(training_row) + "\n")
    ((row,), _) = read("images")
    assert row["provenance"]["device_name"] == "img src=x CPU 1 (x)"


def test_a_later_line_is_a_later_run_whatever_its_clock(data, training_row):
    earlier = json.loads(json.dumps(training_row))
    training_row["provenance"]["started"] = "2001-01-01T00:00:00+00:00"
    training_row["summary"]["final_loss"] = 0.25
    text = "\n".join([json.dumps(earlier), json.dumps(training_row), ""])
    (data / "images.jsonl").write_text(text)
    (row,) = recorded_rows("images")
    assert row["summary"]["final_loss"] == 0.25
