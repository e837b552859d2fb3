"""A config.json as a family reads it: checked values, and errors that name the key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quantcli.errors import DataError, printable

MAX_LAYERS = 10_000


def refuse(problem: str, *place: str) -> DataError:
    """The error for a config.json that llama.cpp would run differently or not at all."""
    return DataError(problem, place=["config.json", *place])


@dataclass(frozen=True, slots=True)
class Rope:
    """The rotary embedding: the base of its frequencies, how it is scaled (`default` for not at all) and the values for
    that, and the share of a head that is rotated."""

    base: float
    kind: str
    values: Mapping[str, Any]
    part: float


@dataclass(frozen=True, slots=True)
class Config:
    """The values of a config.json, of models of several parts those of the part that reads text."""

    values: Mapping[str, Any]

    def get(self, key: str, default: Any = None) -> Any:
        """A value; the default where it is missing or null."""
        value = self.values.get(key)
        return default if value is None else value

    def whole(self, key: str, default: int | None = None, *, least: int = 1) -> int:
        """A whole number. Raises DataError."""
        value = self.get(key, default)
        if type(value) is not int or not least <= value < 1 << 31:
            what = f"{printable(repr(value), 40)} is not a whole number of {least} or more"
            raise refuse("is missing" if value is None else what, key)
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A number above 0. Raises DataError."""
        return number(self.values, key, default)

    def layers(self, key: str = "num_hidden_layers") -> int:
        """The number of layers. Raises DataError."""
        count = self.whole(key)
        if count > MAX_LAYERS:
            raise refuse(f"{count} layers are too many, up to {MAX_LAYERS} are supported", key)
        return count

    def only(self, key: str, *fine: Any) -> None:
        """Raise DataError for a value that llama.cpp does not support for the family; a missing one is fine."""
        value = self.values.get(key)
        if value is not None and value not in fine:
            raise refuse(f"llama.cpp does not support {printable(repr(value), 40)}", key)

    def rope(self, kind: str = "", base: float = 10000.0) -> Rope:
        """The rotary embedding of the layers of a kind, where these differ: transformers 5 writes rope_parameters,
        earlier ones rope_theta and rope_scaling. base: where none is given. Raises DataError."""
        found: dict[str, Any] = {}
        for key in ("rope_scaling", "rope_parameters"):
            value = self.values.get(key)
            if value is not None and not isinstance(value, dict):
                raise refuse("it is not an object", key)
            value = value or {}
            found |= value[kind] if isinstance(value.get(kind), dict) else value
        whole = {**self.values, **found}
        return Rope(
            base=number(whole, "rope_theta", base),
            kind=str(found.get("rope_type", found.get("type", "default"))),
            values=found,
            part=number(whole, "partial_rotary_factor", 1.0),
        )


def number(values: Mapping[str, Any], key: str, default: float | None = None) -> float:
    """A number above 0 among some values. Raises DataError."""
    value = values.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e30:
        what = f"{printable(repr(value), 40)} is not a number above 0"
        raise refuse("is missing" if value is None else what, key)
    return float(value)
