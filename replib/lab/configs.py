"""Configs as rows hold them, built again."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from replib.attention import ATTENTION, Attention
from replib.lab import store
from replib.lstm import LSTMConfig
from replib.tasks import SequenceCopy
from replib.tasks.images import Pixels
from replib.tasks.text import Text
from replib.tasks.translation import NumberWords, ParallelText

PART_CLASSES = (SequenceCopy, Pixels, NumberWords, ParallelText, Text, LSTMConfig)
PARTS: dict[str, type] = {part.__name__: part for part in PART_CLASSES}
"""What may stand in a config in place of a part's default, by the name of its class."""


def config_from(kind: type, plain: Any) -> Any:
    """The config of a row's plain fields; a field that is missing has its default.

    Raises:
        ValueError: a field is unknown, of another kind, or has an impossible value.
    """
    if not isinstance(plain, dict):
        raise ValueError(f"the config of a {kind.__name__} is {short(plain)}")
    hints, known = _hints(kind), {one.name: one for one in dataclasses.fields(kind)}
    if plain.get("options") is not None and "attention" in known:
        attention = plain.get("attention", known["attention"].default)
        mechanism = ATTENTION.get(attention, Attention) if isinstance(attention, str) else Attention
        hints = hints | {"options": mechanism.Options}
    for name in plain:
        if name not in known:
            raise ValueError(f"config field {name!r} is not known: it is of a newer version")
    for name, field in known.items():
        if name not in plain and _is_part(field):
            raise ValueError(f"its config has no {name}")
    values = {
        name: _part(known[name], value) or _value(name, hints[name], value)
        for name, value in plain.items()
        if known[name].init
    }
    try:
        config = kind(**values)
    except TypeError as error:  # a field without a default is missing, or values do not compare
        raise ValueError(f"config: {error}") from error
    for name, value in plain.items():
        if not known[name].init and value != getattr(config, name):
            raise ValueError(f"config field {name!r} is {value!r}, not {getattr(config, name)!r}")
    return config


@lru_cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _part(field: dataclasses.Field, value: Any) -> Any:
    """A dataclass in a config, of the class that it names, else its default's; None where the
    field holds something else."""
    if not _is_part(field):
        return None
    if not isinstance(value, Mapping):
        raise ValueError(f"config field {field.name!r} is {short(value)}")
    named = value.get(store.CLASS)
    if named is not None and named not in PARTS:
        raise ValueError(f"its {field.name} is {short(named)}, which is not known")
    fields = {name: x for name, x in value.items() if name != store.CLASS}
    return config_from(PARTS[named] if named else type(store.default_of(field)), fields)


def _is_part(field: dataclasses.Field) -> bool:
    """Whether a field holds a config of its own, such as a task or a model."""
    return dataclasses.is_dataclass(store.default_of(field))


def _value(name: str, hint: Any, value: Any) -> Any:
    """A field's value as its annotation has it."""
    if isinstance(hint, types.UnionType):
        options = [one for one in typing.get_args(hint) if one is not types.NoneType]
        if value is None and len(options) < len(typing.get_args(hint)):
            return None
        hint = options[0]
    if dataclasses.is_dataclass(hint):
        return config_from(hint, value)
    if typing.get_origin(hint) is tuple:
        of = typing.get_args(hint)[0]
        if isinstance(value, list):
            return tuple(_value(name, of, one) for one in value)
    elif type(value) is hint or (hint is float and type(value) is int):
        return value
    raise ValueError(f"config field {name!r} is {short(value)}")


def short(value: Any) -> str:
    """A value as it is named where it is refused."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
