"""What the fields of a config may be, and what is said of others."""

from collections.abc import Iterable
from typing import Any


def check_known(config: Any, **known: Iterable[str]) -> None:
    """Raise ValueError where a field of a config is none of the known values."""
    for name, values in known.items():
        if getattr(config, name) not in values:
            raise ValueError(f"unknown {name} {getattr(config, name)!r}: use {', '.join(values)}")


def check_numbers(config: Any, **limits: int | tuple[int, int]) -> None:
    """Raise ValueError where a field of a config is not 1 to a most, or not least to most."""
    for name, limit in limits.items():
        least, most = limit if isinstance(limit, tuple) else (1, limit)
        if not least <= getattr(config, name) <= most:
            raise ValueError(f"{name} {getattr(config, name)}: use {least} to {most}")


def check_share(config: Any, *names: str) -> None:
    """Raise ValueError where a field of a config is not 0 to below 1; None is no mistake."""
    for name in names:
        share = getattr(config, name)
        if share is not None and not 0 <= share < 1:
            raise ValueError(f"{name} {share}: use 0 to below 1")
