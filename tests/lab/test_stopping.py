"""However a recording is ended, what it computes in the end is what it would have computed."""

import os
import random
import signal
import subprocess
import sys
from contextlib import suppress
from time import sleep

import pytest

from replib.lab import store

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name == "nt", reason="there are no such signals"),
]
MOST_KILLS = 6  # then the run is let go to its end

# A process that has imported everything forks one for each line "folder cache" that it reads, tells
# its number, and tells its exit status once it has ended.
SERVER = """
import os, sys, time
from replib import __main__ as cli
from replib.claims import EXPERIMENTS
from replib.claims.capacity.grid import retrieval_config
from replib.claims.common import laptop_copy
from replib.fast_weights import MemoryConfig
from replib.lab import interrupts
from replib.lab.record import Experiment
from replib.lab.run import RetrievalJob, TrainingJob
from replib.lab.runs import checkpointed
from replib.training import Training
import torch
torch.set_num_threads(1)

def jobs(scale):
    copy = laptop_copy("linear", 16, 40, eval_every=7, eval_batches=1, batch_size=4)
    memory = retrieval_config(
        6, MemoryConfig(attention="relu", head_dim=8), n_steps=40, eval_every=7, eval_sequences=2
    )
    return [TrainingJob(config=copy, seed=s) for s in (0, 1)] + [
        RetrievalJob(config=memory, seeds=(0, 1, 2))
    ]

EXPERIMENTS["tiny"] = Experiment(name="tiny", title="", jobs=jobs)
checkpointed.CHECKPOINT_EVERY_S = 0.0
step = Training.train_step
def slow_step(self):
    time.sleep(0.002)
    return step(self)
Training.train_step = slow_step
print("ready", flush=True)
for line in sys.stdin:
    os.environ["REPLIB_DATA"], os.environ["REPLIB_CACHE"] = line.split()
    child = os.fork()
    if not child:
        interrupts.end_at_once()
        code = cli.main(["record", "tiny", "--device", "cpu", "--threads", "1"])
        os._exit(code)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def server():
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", SERVER], text=True, **pipes) as process:
        while process.stdout.readline() not in ("ready\n", ""):
            pass
        yield process
        process.stdin.close()


def numbers(server):
    """The next line that is a number: others are of rows."""
    while True:
        line = server.stdout.readline()
        assert line, server.stderr.read()
        if line.strip().lstrip("-").isdigit():
            return int(line)


def record(server, data, cache, number=None, after_s=0.0):
    """Record, and send a signal after a while; the exit status."""
    print(data, cache, file=server.stdin, flush=True)
    child = numbers(server)
    if number is not None:
        sleep(after_s)
        with suppress(ProcessLookupError):  # it has ended
            os.kill(child, number)
    return numbers(server)


def compared(rows):
    """What does not depend on when and how fast a run was."""
    timed = ("steps_per_s", "seconds")
    figures = [{n: x for n, x in row["summary"].items() if n not in timed} for row in rows]
    told = [
        [row["run_id"], row["outcome"], row["curve"], of_run]
        for row, of_run in zip(rows, figures, strict=True)
        if row["outcome"] != "interrupted"
    ]
    return sorted(told, key=lambda run: run[0])


@pytest.fixture(scope="module")
def whole(server, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    assert record(server, folder / "data", folder / "cache") == 0
    return compared(store.read_rows("tiny", folder / "data"))


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGKILL"])
def test_a_recording_ended_at_random_times_goes_on_to_the_same_rows(server, whole, tmp_path, name):
    number, moments = getattr(signal, name), random.Random(name)
    data, cache = tmp_path / "data", tmp_path / "cache"
    expected = {"SIGINT": (130, 0), "SIGTERM": (143, 0), "SIGKILL": (-9, 0)}[name]
    ended = []
    for _ in range(MOST_KILLS):
        ended.append(record(server, data, cache, number, moments.uniform(0.02, 0.25)))
    ended.append(record(server, data, cache))
    assert ended[-1] == 0 and set(ended) <= set(expected) and expected[0] in ended
    assert compared(store.read_rows("tiny", data)) == whole
    left = [path for path in cache.rglob("*") if path.is_file()]
    assert left == [] and {path.name for path in data.iterdir()} <= {"tiny.jsonl", ".locks"}
