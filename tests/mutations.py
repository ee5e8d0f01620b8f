"""Thirty edits that make the library wrong, each of which fast tests must catch.

`python tests/mutations.py` applies one edit at a time to a copy of the project and runs the tests
named with it (a part of `make test`), which have to fail; `python tests/mutations.py NAME ...` runs
those whose names hold a word. It ends with status 1 where an edit is not caught.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("replib", "benchmarks", "notebooks", "tests", "data", "docs")
COPIED += ("pyproject.toml", "README.md")
SECONDS = 600  # for the tests of an edit


@dataclass(frozen=True)
class Mutation:
    """An edit of a file, and the tests that must see it."""

    name: str
    path: str
    old: str
    new: str
    tests: str


ATTENTION, KERNELS = "tests/attention tests/test_golden.py", "tests/kernels"
MUTATIONS = [
    Mutation(
        "a causal mask that shows the next position",
        "replib/attention/linear.py",
        "weights = weights.tril()",
        "weights = weights.tril(1)",
        ATTENTION,
    ),
    Mutation(
        "a causal mask that hides the own position",
        "replib/attention/softmax.py",
        "visible = key <= query",
        "visible = key < query",
        ATTENTION,
    ),
    Mutation(
        "eps dropped from the normaliser of a step",
        "replib/attention/linear.py",
        "return numerator / ((q * z).sum(-1, keepdim=True) + self.eps)",
        "return numerator / (q * z).sum(-1, keepdim=True)",
        ATTENTION,
    ),
    Mutation(
        "eps dropped from the plain form",
        "replib/plain.py",
        "den = weights.sum(-1, keepdim=True) + (q_c * z).sum(-1, keepdim=True) + eps",
        "den = weights.sum(-1, keepdim=True) + (q_c * z).sum(-1, keepdim=True)",
        "tests/attention tests/test_without_kernels.py tests/kernels/test_kernels_operator.py",
    ),
    Mutation(
        "softmax's scores unscaled",
        "replib/attention/softmax.py",
        "/ math.sqrt(q.shape[-1])  # (B, H, N, N)",
        "/ 1.0",
        ATTENTION,
    ),
    Mutation(
        "a state that forgets its normaliser",
        "replib/attention/linear.py",
        "            z.add_(k)\n",
        "",
        "tests/attention tests/test_generation.py",
    ),
    Mutation(
        "DPFP of products with themselves",
        "replib/attention/feature_maps.py",
        "for j in range(1, nu + 1)",
        "for j in range(nu)",
        ATTENTION,
    ),
    Mutation(
        "FAVOR+ without half of |x|²",
        "replib/attention/feature_maps.py",
        "x.square().sum(-1, keepdim=True) / 2",
        "x.square().sum(-1, keepdim=True)",
        ATTENTION,
    ),
    Mutation(
        "the sign of dφ in the torch kernel, not causal",
        "replib/kernels/linear/torch.py",
        ".div_(den).neg_()  # (B, H, N, 1)",
        ".div_(den)",
        KERNELS,
    ),
    Mutation(
        "the sign of r in the torch kernel, causal",
        "replib/kernels/linear/torch.py",
        "baddbmm_(values, r_s.mT).sub_(r_z)",
        "baddbmm_(values, r_s.mT).add_(r_z)",
        KERNELS,
    ),
    Mutation(
        "a slope of elu + 1",
        "replib/kernels/linear/torch.py",
        "slopes = torch.clamp(phi, max=1, out=buffers.scratch)",
        "slopes = torch.clamp(phi, max=2, out=buffers.scratch)",
        KERNELS,
    ),
    Mutation(
        "a delta write of the wrong sign",
        "replib/plain.py",
        "error = torch.baddbmm(value, key, s, alpha=-1)",
        "error = torch.baddbmm(value, key, s, alpha=1)",
        ATTENTION,
    ),
    Mutation(
        "the sign of dK of the delta rule",
        "replib/kernels/delta/torch.py",
        "d_keys.baddbmm_(reads.mT, queries).baddbmm_(symmetric, keys, alpha=-1)",
        "d_keys.baddbmm_(reads.mT, queries).baddbmm_(symmetric, keys, alpha=1)",
        "tests/attention",
    ),
    Mutation(
        "the sign of dM of the delta rule",
        "replib/kernels/delta/torch.py",
        "d_memories[i].baddbmm_(weighted_c.mT, g_c, alpha=-1)",
        "d_memories[i].baddbmm_(weighted_c.mT, g_c, alpha=1)",
        "tests/attention",
    ),
    Mutation(
        "the sign of a decay's gradient in fwm",
        "replib/kernels/retrieval/fwm.py",
        "        d_log[:, :i] -= d_row\n",
        "        d_log[:, :i] += d_row\n",
        "tests/test_fast_weights.py",
    ),
    Mutation(
        "a copy that starts a position late",
        "replib/tasks/copy.py",
        "copied = torch.where(position < n, position, position - n - 1)",
        "copied = torch.where(position < n, position, position - n)",
        "tests/tasks tests/test_golden.py",
    ),
    Mutation(
        "one position more in the loss",
        "replib/tasks/copy.py",
        "in_accuracy = (position >= n) & (position < 2 * n)",
        "in_accuracy = (position >= n) & (position <= 2 * n)",
        "tests/tasks tests/test_golden.py",
    ),
    Mutation(
        "a decoder that is given its target",
        "replib/tasks/copy.py",
        "return Batch((source, source[:, :-1]), targets, everywhere, everywhere)",
        "return Batch((source, source[:, 1:]), targets, everywhere, everywhere)",
        "tests/tasks tests/test_golden.py",
    ),
    Mutation(
        "the value that a key was given first",
        "replib/tasks/retrieval.py",
        "last = found.amax(-1)",
        "last = found.masked_fill(found == 0, 10**6).amin(-1) % 10**6",
        "tests/tasks tests/test_golden.py",
    ),
    Mutation(
        "a learning rate that does not drop",
        "replib/training.py",
        "(0.1 if step >= self.lr_drop_step else 1.0)",
        "(1.0 if step >= self.lr_drop_step else 1.0)",
        "tests/test_training.py",
    ),
    Mutation(
        "a position that stands still",
        "replib/decoder.py",
        "        self.position += 1\n",
        "",
        "tests/test_generation.py",
    ),
    Mutation(
        "supported where one criterion is met",
        "replib/lab/verdict.py",
        "if met and all(met):",
        "if met and any(met):",
        "tests/lab/test_verdict.py",
    ),
    Mutation(
        "an interval that holds no confidence",
        "replib/lab/statistics.py",
        "half = t_quantile((1 + confidence) / 2, freedom) * math.sqrt(variance)",
        "half = t_quantile(confidence, freedom) * math.sqrt(variance)",
        "tests/lab/test_statistics.py",
    ),
    Mutation(
        "a crossover read upside down",
        "replib/claims/crossover/crossings.py",
        "crossing(softmax, samples[variant])",
        "crossing(samples[variant], softmax)",
        "tests/claims",
    ),
    Mutation(
        "a damaged line that is read",
        "replib/lab/store.py",
        "if digest is not None and digest != row_digest(row):",
        "if False:",
        "tests/lab/test_store.py",
    ),
    Mutation(
        "old rows that pass for present ones",
        "replib/lab/store.py",
        'return all(row["versions"].get(name, 1) == versions.get(name, 1) for name in names)',
        "return True",
        "tests/lab",
    ),
    Mutation(
        "a negative loss that is believed",
        "replib/lab/recorded.py",
        "Amount = Annotated[float, Meta(ge=0)]",
        "Amount = Annotated[float, Meta(ge=-1e9)]",
        "tests/lab/test_recorded.py",
    ),
    Mutation(
        "a checkpoint whose digest nobody compares",
        "replib/checkpoints.py",
        "if head != MAGIC + _digest(payload):",
        "if False:",
        "tests/test_training.py",
    ),
    Mutation(
        "a run that is recorded twice",
        "replib/lab/run.py",
        "return None if run in done and kept else self",
        "return self",
        "tests/lab/test_record.py",
    ),
    Mutation(
        "versions that do not name a run",
        "replib/lab/store.py",
        "changed = {name: version for name, version in versions.items() if version != 1}",
        "changed = {}",
        "tests/lab",
    ),
]


def copies(n: int, folder: Path) -> Iterator[Path]:
    for i in range(n):
        place = folder / str(i)
        place.mkdir()
        for name in COPIED:
            if (ROOT / name).is_dir():
                ignored = shutil.ignore_patterns("__pycache__", "artifacts")
                shutil.copytree(ROOT / name, place / name, ignore=ignored)
            elif (ROOT / name).exists():
                shutil.copy(ROOT / name, place / name)
        yield place


def is_caught(mutation: Mutation, place: Path) -> bool:
    """Whether the tests of an edit fail in a copy of the project, which is as before afterwards.

    Raises:
        ValueError: the edit fits no longer.
        RuntimeError: the tests did not run.
    """
    path = place / mutation.path
    text = path.read_text()
    if text.count(mutation.old) != 1:
        raise ValueError(f"{mutation.name}: {mutation.old!r} is not once in {mutation.path}")
    path.write_text(text.replace(mutation.old, mutation.new))
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-m",
        "not slow",
        "-p",
        "no:cacheprovider",
    ]
    environment = os.environ | {"PYTHONPATH": str(place), "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            [*command, *mutation.tests.split()],
            cwd=place,
            env=environment,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        if done.returncode not in (0, 1):  # of pytest: not that some tests failed
            raise RuntimeError(f"{mutation.name}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
        return done.returncode == 1
    except subprocess.TimeoutExpired:
        return False
    finally:
        path.write_text(text)


def main(words: list[str]) -> int:
    chosen = [m for m in MUTATIONS if not words or any(word in m.name for word in words)]
    n = max(1, (os.cpu_count() or 1))
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(n) as pool:
        places = list(copies(n, Path(folder)))

        def share(i: int) -> list[str]:
            missed = []
            for mutation in chosen[i::n]:
                caught = is_caught(mutation, places[i])
                print(f"{'caught' if caught else 'MISSED'}: {mutation.name}", flush=True)
                missed += [] if caught else [mutation.name]
            return missed

        missed = [name for names in pool.map(share, range(n)) for name in names]
    print(f"{len(chosen) - len(missed)} of {len(chosen)} caught")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
