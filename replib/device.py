"""The device that a computation runs on, by the name a person gives it."""

import torch


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
