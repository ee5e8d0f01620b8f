"""Where a result comes from: commit, versions of packages, device, threads and start."""

import os
import platform
import re
import subprocess
from contextlib import suppress
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from replib.files import ROOT

COMMIT_DIGITS = 12  # unique in any repository of this size, and readable
GIT_TIMEOUT_S = 10  # a hanging network checkout must not hold a run back


def provenance(device: str = "cpu", *, started: datetime | None = None) -> dict[str, Any]:
    """Where a result comes from: commit, versions of packages, device, threads and start.

    commit and dirty (a tracked file of `replib/` is changed) are None outside a git checkout.
    started is ISO 8601 in UTC, now if left out. No host, user or path is ever recorded.
    """
    import numpy  # imported here, as readers of `data/` need neither
    import torch

    commit, dirty = _git_state()
    return {
        "commit": commit,
        "dirty": dirty,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": numpy.__version__,
        "device": str(device),
        "device_name": clean_name(_device_name(str(device))),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),  # "AVX2", "AVX512", ...
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "started": (started or datetime.now(UTC)).astimezone(UTC).isoformat(timespec="seconds"),
    }


def clean_name(name: str) -> str:
    """A device's name without what Markdown or HTML would take for markup."""
    return " ".join(re.sub(r"[<>&|*`\[\]\\\s]", " ", name).split())


def _device_name(device: str) -> str:
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device)
    with suppress(OSError):  # Linux alone has it
        model = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
        if model:
            return model[1]
    return platform.processor() or platform.machine()


@lru_cache(maxsize=1)  # the state in which the process began to record
def _git_state() -> tuple[str | None, bool | None]:
    """The commit, and whether a tracked file of `replib/` differs from it."""
    if not (ROOT / ".git").exists():  # an enclosing repository would not be ours
        return None, None
    try:
        commit = _git("rev-parse", "--verify", "HEAD")[:COMMIT_DIGITS]
        return commit, bool(_git("status", "--porcelain", "--untracked-files=no", "--", "replib"))
    except (OSError, subprocess.SubprocessError):  # no git, no commit yet, or git refuses
        return None, None


def _git(*arguments: str) -> str:
    command = ["git", "--no-optional-locks", "-C", str(ROOT), *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=GIT_TIMEOUT_S
    )
    return done.stdout.strip()
