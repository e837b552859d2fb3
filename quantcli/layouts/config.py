"""The config.json beside a model: its architecture, and how its tensors are stored."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from quantcli import architectures
from quantcli.architectures import UNNAMED, Architecture
from quantcli.dtypes import LONG_NAMES
from quantcli.errors import DataError, printable
from quantcli.layouts.writer import Beside
from quantcli.strict import strict_json

CONFIG_HINT = "put the model's config.json beside the file"


def section(config: Mapping[str, Any], *path: str) -> dict[str, Any]:
    """A nested object of config.json; empty when it is missing. Raises DataError when it is not an object."""
    found: Any = config
    for i, key in enumerate(path):
        found = found.get(key)
        if found is None:
            return {}
        if not isinstance(found, dict):
            raise DataError("it is not an object", place=["config.json", *path[: i + 1]])
    return dict(found)


def whole(values: Mapping[str, Any], key: str, low: int, high: int) -> int | None:
    """A whole number of config.json; None when it is missing. Raises DataError when it is not one in range."""
    value = values.get(key)
    if value is None:
        return None
    if type(value) is not int or not low <= value <= high:
        raise DataError(f"{printable(repr(value), 40)} is not from {low} to {high}", place=["config.json", key])
    return value


def text(values: Mapping[str, Any], key: str) -> str | None:
    """A text of config.json in lower case; None when it is missing. Raises DataError when it is not text."""
    value = values.get(key)
    if value is None or isinstance(value, str):
        return value if value is None else printable(value, 60).lower()
    raise DataError(f"{printable(repr(value), 40)} is not text", place=["config.json", key])


def model_dtype(config: Mapping[str, Any], otherwise: str = "BF16") -> str:
    """The dtype a model computes in by its config.json, or that of its text; when it states none of F32, F16 and BF16,
    another, such as BF16, which loaders take."""
    texts = [v for k, v in config.items() if k.endswith("text_config") and isinstance(v, dict)]
    for own in (config, *texts[:4]):
        for key in ("dtype", "torch_dtype"):
            stated = own.get(key)
            if isinstance(stated, str) and LONG_NAMES.get(stated) in ("F32", "F16", "BF16"):
                return LONG_NAMES[stated]
    return otherwise


def json_beside(beside: Beside, name: str) -> dict[str, Any] | None:
    """A JSON object beside the weights; None when there is no such file. Raises DataError when it is not an object."""
    raw = beside(name)
    return None if raw is None else _object(raw, name)


def _object(raw: bytes, name: str) -> dict[str, Any]:
    """The JSON object of a file. Raises DataError when it is not one."""
    found = strict_json(raw, name)
    if not isinstance(found, dict):
        raise DataError("it is not an object", place=[name])
    return found


def stated(beside: Beside) -> Architecture | None:
    """The architecture that the config.json beside a model names; None where it names none. Raises DataError."""
    raw = beside("config.json")
    return None if raw is None else _stated_by(raw)


@lru_cache(maxsize=4)
def _stated_by(raw: bytes) -> Architecture | None:
    """The same by the bytes of a config.json, which one run asks for many times."""
    return architectures.of(_object(raw, "config.json"))


def architecture(beside: Beside) -> Architecture:
    """The same, or an unnamed architecture, for which tensor names decide."""
    return stated(beside) or UNNAMED


def without_quantization(config: Mapping[str, Any]) -> dict[str, Any]:
    """The rest of a config.json, of the models in it too: those of several parts may state it for one."""
    own = {k: v for k, v in config.items() if k not in (*_QUANTIZATION, "quantization")}
    return {k: _plain(v) if isinstance(v, dict) else v for k, v in own.items()}


_QUANTIZATION = ("quantization_config", "compression_config")


def _plain(part: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in part.items() if k not in _QUANTIZATION}
