"""What suites ask of every registered variant, found by what the variant says of itself and not in a table of names."""

from __future__ import annotations

import itertools
from typing import Any

from quantcli import Scheme, UsageError, registry
from quantcli.layouts.writer import named
from quantcli.scheme import IN_SUPER_BLOCKS, ONE_BYTE

ASYMMETRIC: tuple[dict[str, Any], ...] = ({"symmetric": False}, {"symmetric": False, "zero_point": "float"})


def _scheme(**fields: Any) -> Scheme | None:
    """A scheme; None where these fields make none."""
    try:
        return Scheme(**fields)
    except UsageError:
        return None


def schemes_of_format(name: str) -> dict[str, dict[str, Any]]:
    """Fields of schemes of a format by a label: its fewest, usual and most bits, every granularity, and the zero points
    it has."""
    low, high, usual = registry.get("formats", name).bits
    cases: list[dict[str, Any]] = [{"bits": bits} for bits in sorted({low, usual, high})]
    cases += [{"granularity": "tensor"}, {"granularity": "channel"}, {"group_size": 48}, *ASYMMETRIC]
    found = [{"format": name, **case} for case in cases if _scheme(format=name, **case) is not None]
    return {f"{name} {number}": fields for number, fields in enumerate(found)}


def schemes_of_calibrator(name: str) -> dict[str, dict[str, Any]]:
    """Fields of schemes that a calibrator makes, by a label: a format of every family it is for, groups and tensors."""
    found = []
    for family in registry.get("calibrators", name).families:
        formats = [f for f in registry.names("formats") if registry.get("formats", f).family == family]
        cases: list[dict[str, Any]] = [{"group_size": 32}, {"granularity": "tensor"}, {"granularity": "channel"}]
        cases += [{"bits": 1}, *ASYMMETRIC]
        all_fields = [{"format": formats[0], "calibration": name, **case} for case in cases]
        found += [fields for fields in all_fields if _scheme(**fields) is not None]
    return {f"{name} {number}": fields for number, fields in enumerate(found)}


def schemes_of_target(name: str) -> list[Scheme]:
    """Schemes that a target stores: each format and width, granularity and kind of zero point is in one of them."""
    found, seen = list[Scheme](), set[tuple[str, object]]()
    for accepts in (named(name).accepts, *named(name).accepts.others):
        sizes = sorted(accepts.groups or ((16, 32) if accepts.storage == IN_SUPER_BLOCKS else (32, 48)))
        places: list[dict[str, Any]] = [{"group_size": size} for size in (*sizes, 3 * sizes[0])]
        places += [{"granularity": "channel"}, {"granularity": "tensor"}, {"granularity": "block"}]
        kinds: list[dict[str, Any]] = [{}, *ASYMMETRIC]
        if accepts.storage == IN_SUPER_BLOCKS:
            kinds = [{"scale_dtype": IN_SUPER_BLOCKS, **kind} for kind in kinds]
        elif accepts.storage != "plain":
            kinds = [{"scale_dtype": next(d for d, storage in ONE_BYTE.items() if storage == accepts.storage)}]
        for form, bits, place, kind in itertools.product(accepts.formats, accepts.bits, places, kinds):
            scheme = _scheme(format=form, bits=bits, **place, **kind)
            if scheme is None or accepts.obstacle(scheme) is not None:
                continue
            facts = {("what", (form, bits)), ("where", (form, str(place))), ("kind", (form, str(kind)))}
            if facts - seen:
                found.append(scheme)
                seen |= facts
    return found


def options_of(scheme: Scheme) -> list[str]:
    """The command line that asks for format, width, places and zero points of a scheme."""
    found = ["--type", scheme.format, "--bits", str(scheme.bits), "--granularity", scheme.granularity]
    found += ["--group-size", str(scheme.group_size)] if scheme.group_size else []
    found += ["--scale-dtype", scheme.scale_dtype] if scheme.storage != "plain" else []
    return found + ([] if scheme.symmetric else ["--asymmetric", "--zero-point", scheme.zero_point])
