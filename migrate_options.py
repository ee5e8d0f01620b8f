"""What an old row's `implementation` is in the fields `options` and `kernel`."""

from typing import Any


def migrated(config: dict[str, Any]) -> dict[str, Any]:
    """The config of a row, or of a model in it, with the present fields; others are left alone."""
    found = {}
    for name, value in config.items():
        if name == "implementation":
            found |= _fields(config, value)
        else:
            found[name] = migrated(value) if isinstance(value, dict) else value
    return found


def _fields(config: dict[str, Any], implementation: str | None) -> dict[str, Any]:
    options, kernel = _options(config["attention"], implementation), None
    if implementation is not None and options is None:
        kernel = implementation
    # A memory of associative retrieval has no choice of kernel.
    return {"options": options} | ({} if "update_rule" in config else {"kernel": kernel})


def _options(attention: str, implementation: str | None) -> dict[str, Any] | None:
    if implementation is None:
        return None
    if attention == "lsh":
        rounds = implementation.removeprefix("original ")
        return {"rounds": int(rounds.split()[0]), "original": rounds != implementation}
    if attention == "dpfp" or implementation.startswith("nu"):
        return {"nu": int(implementation.removeprefix("nu"))}
    if attention == "performer":
        return {"n_directions": int(implementation)}
    return {"features": implementation} if attention == "fwm" else None
