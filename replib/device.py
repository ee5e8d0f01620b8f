"""The device that a computation runs on, by the name a person gives it, and its free memory."""

import os
from pathlib import Path

import torch

# Assumed free where the system tells nothing (not Linux, no sysconf).
UNKNOWN_MEMORY_BYTES = 4 * 10**9


def resolve_device(name: str | torch.device | None = None) -> torch.device:
    """The torch device meant by a name.

    Args:
        name: "cpu", "cuda", "cuda:1"; None or "auto" is CUDA where there is one, else the CPU.

    Raises:
        ValueError: the name is unknown, or no such CUDA device was found.
    """
    if name is None or name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ValueError(f"unknown device {str(name)!r}: use auto, cpu or cuda")
    if device.type == "cuda":
        _check_cuda(device)
    return device


def _check_cuda(device: torch.device) -> None:
    if not torch.cuda.is_available():
        raise ValueError(
            "no CUDA device was found: use --device cpu, or install a CUDA build of torch"
        )
    count = torch.cuda.device_count()
    if device.index is not None and device.index >= count:
        raise ValueError(f"{device} was not found: use cuda:0 to cuda:{count - 1}")


def available_memory_bytes(device: str | torch.device = "cpu") -> int:
    """Memory that new tensors can take, in bytes.

    CUDA: free memory of the device, and what torch's allocator holds unused. CPU: the least of
    MemAvailable of /proc/meminfo and what is left under the limit of each enclosing control
    group (version 1 or 2; page cache that can be dropped counts as free). Without /proc the free
    pages by sysconf, else half of all pages, else UNKNOWN_MEMORY_BYTES.
    """
    device = resolve_device(device)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + unused
    return max(0, min([_system_free_bytes(), *_cgroup_free_bytes()]))


def _system_free_bytes(meminfo: Path = Path("/proc/meminfo")) -> int:
    try:
        kilobytes = _read_fields(meminfo)["MemAvailable:"]
        return kilobytes * 1024
    except (OSError, KeyError):
        pass
    for name, share in (("SC_AVPHYS_PAGES", 1.0), ("SC_PHYS_PAGES", 0.5)):
        if name in getattr(os, "sysconf_names", {}):
            return int(os.sysconf(name) * os.sysconf("SC_PAGE_SIZE") * share)
    return UNKNOWN_MEMORY_BYTES


def _cgroup_free_bytes(
    membership: Path = Path("/proc/self/cgroup"), mount: Path = Path("/sys/fs/cgroup")
) -> list[int]:
    """What each control group that holds this process has left, in bytes; [] without limits."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return []
    free = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, names = mount, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            root = mount / "memory"
            names = (
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
                "total_inactive_file",
            )
        else:
            continue
        group = root / path.strip("/")
        # In a container the path may be that of the host: then only the root is there.
        for folder in (group, *group.parents):
            free.extend(_group_free_bytes(folder, *names))
            if folder == root:
                break
    return free


def _group_free_bytes(folder: Path, limit: str, usage: str, cache: str) -> list[int]:
    try:
        limit_text = (folder / limit).read_text().strip()
        used = int((folder / usage).read_text())
        droppable = _read_fields(folder / "memory.stat").get(cache, 0)
    except OSError:
        return []
    return [] if limit_text == "max" else [int(limit_text) - used + droppable]


def _read_fields(path: Path) -> dict[str, int]:
    rows = (line.split() for line in path.read_text().splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) >= 2 and row[1].isdigit()}
