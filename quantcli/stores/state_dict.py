"""The tensors of a checkpoint of PyTorch by name: which of its dicts is the model, and what else it holds.

A file may hold the state dict itself, or a dict with it and the state of the training run. What is left out is said;
where two dicts could be the model, neither is taken.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from quantcli.errors import DataError, listed, printable
from quantcli.stores.pickles import Object, said
from quantcli.stores.torch_names import SAVE, Tensor

_DEPTH = 10
"""Dicts in dicts in which a model is looked for."""
_SHOWN = 6
_TRAINING = re.compile(r"(?:optim|.*scheduler|.*scaler|.*rng|.*random|loops|callbacks).*", re.IGNORECASE)
"""Keys for the state of a training run, in which tensors may be too."""
_SETTINGS = re.compile(r"(?:.*_)?(?:config|cfg|args|hparams|hyper_?param(?:eter)?s)", re.IGNORECASE)
"""Keys for how a model was made, in which single tensors may be too."""
_WHY = ("not tensors", "not read", "settings", "beside the model", "state of a training run")
"""Why something is left out."""


@dataclass(frozen=True, slots=True)
class StateDict:
    """The tensors of a model by name, and what there is to say of them: where they were, and what is left out."""

    tensors: dict[str, Tensor]
    notes: tuple[str, ...]


def find(value: Any, name: str) -> StateDict:
    """The model in the value of a pickle. name: of a tensor that stands alone. Raises DataError."""
    if isinstance(value, Tensor):
        return StateDict({name: value}, ())
    notes: list[str] = []
    path: list[str] = []
    for _ in range(_DEPTH):
        if not isinstance(value, dict):
            hint = SAVE if isinstance(value, Object) else None
            raise DataError(f"it holds {said(value)}, not tensors by name", place=path, hint=hint)
        key = _inner(value, path)
        notes += _left_out(value, path, key)
        if key is None:
            tensors = _named(value, path)
            where = [f"the tensors are those under {'.'.join(path)}"] if path else []
            return StateDict(tensors, (*where, *notes, *_tied(tensors)))
        path.append(printable(str(key), 60))
        value = value[key]
    raise DataError("its tensors are nested too deeply")


def _inner(value: Mapping[Any, Any], path: list[str]) -> Any:
    """The key of the dict to look into for the model; None where it is this one. Raises DataError."""
    nested = [k for k, v in value.items() if isinstance(v, (dict, list, tuple)) and _holds(v) and not _is_training(k)]
    if len(nested) > 1:
        nested = [k for k in nested if not _is_settings(k)] or nested
    weights = any(isinstance(v, Tensor) and v.shape for v in value.values())
    shown = listed([printable(repr(k), 60) for k in nested], _SHOWN)
    hint = "save the one to quantize alone, with torch.save"
    if weights and nested:
        raise DataError(f"it holds tensors, and more under {shown}: either may be the model", place=path, hint=hint)
    if len(nested) > 1:
        raise DataError(f"there are tensors under {shown}, and each may be the model", place=path, hint=hint)
    if not nested and not any(isinstance(v, Tensor) for v in value.values()):
        objects = [f"{printable(repr(k), 60)}, {said(v)}" for k, v in value.items() if isinstance(v, Object)]
        inside = f", unless inside of {listed(objects, 2)}, which is not read" if objects else ""
        raise DataError(f"it holds no tensors{inside}", place=path, hint=SAVE if objects else None)
    return nested[0] if nested else None


def _is_training(key: Any) -> bool:
    return isinstance(key, str) and _TRAINING.fullmatch(key) is not None


def _is_settings(key: Any) -> bool:
    return isinstance(key, str) and _SETTINGS.fullmatch(key) is not None


def _inside(value: Any) -> Iterator[Any]:
    """A value and all in it, each container once: a pickle may refer to one many times, or to itself."""
    seen: set[int] = set()
    left = [value]
    while left:
        value = left.pop()
        yield value
        if isinstance(value, (dict, list, tuple)) and id(value) not in seen:
            seen.add(id(value))
            left.extend(value.values() if isinstance(value, dict) else value)


def _holds(value: Any) -> bool:
    """Whether there are tensors in it."""
    return any(isinstance(v, Tensor) for v in _inside(value))


def _left_out(value: Mapping[Any, Any], path: list[str], taken: Any) -> list[str]:
    """What is not taken of a dict, where `taken` is the key of the one that is looked into; None: its own tensors."""
    found: dict[str, list[str]] = {why: [] for why in _WHY}
    for key, held in value.items():
        shown = ".".join([*path, printable(str(key), 60)])
        if key == taken and taken is not None:
            continue
        if isinstance(held, Tensor):
            found["beside the model"] += [f"{shown} (a single number)"] if taken is not None else []
        elif _is_training(key):
            found["state of a training run"].append(shown)
        else:
            why = "not read" if isinstance(held, Object) else "settings" if _holds(held) else "not tensors"
            found[why].append(f"{shown} ({said(held)})")
    return [f"left out, {why}: {listed(names, _SHOWN)}" for why, names in found.items() if names]


def _named(value: Mapping[Any, Any], path: list[str]) -> dict[str, Tensor]:
    found = {}
    for key, held in value.items():
        if isinstance(held, Tensor):
            if not isinstance(key, str):
                raise DataError(f"the key of a tensor is {said(key)}, not a name", place=path)
            _check_text(key)
            found[key] = held
    return found


def _check_text(name: str) -> None:
    try:
        name.encode()
    except UnicodeError:
        raise DataError("the name of a tensor holds half a character", place=[printable(name)]) from None


def _tied(tensors: Mapping[str, Tensor]) -> list[str]:
    """What there is to say of tensors that are the same one under several names."""
    homes: dict[Any, list[str]] = {}
    for name, t in tensors.items():
        if t.nbytes:
            homes.setdefault((t.storage.key, t.dtype, t.offset, t.shape, t.strides), []).append(printable(name, 120))
    tied = [" = ".join(names[:4]) for names in homes.values() if len(names) > 1]
    return [f"stored once in the source, and written under each name: {listed(tied)}"] if tied else []
