"""What quantcli finds on a machine, as a document."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from quantcli import terminal as t
from quantcli.errors import printable
from quantcli.passes.diagnose import Diagnosis, Extra, Place, Target
from quantcli.reports.documents import Display, Line, Part, document


@dataclass(frozen=True, slots=True)
class DoctorReport:
    """A diagnosis."""

    found: Diagnosis

    def as_dict(self) -> dict[str, Any]:
        """Plain values, `schema_version` first."""
        return document("doctor", self.found)

    def rows(self) -> Iterator[Sequence[object]]:
        """A row per fact: of what, its name and its value."""
        yield ["of", "name", "value"]
        for title, facts in self._sections():
            for name, value in facts:
                yield [title, name, value]

    def parts(self, display: Display) -> Iterator[Part]:
        """The facts in sections."""
        for number, (title, facts) in enumerate(self._sections()):
            if number:
                yield Line()
            yield Line(title, strong=True)
            width = max((len(name) for name, _ in facts), default=0)
            for name, value in facts:
                yield Line(printable(value, 1000), wrapped=True, lead=f"  {name.ljust(width)}  ")

    def _sections(self) -> list[tuple[str, list[tuple[str, str]]]]:
        found = self.found
        kernels = [("in use", found.kernels + (f": {found.problem}" if found.problem else ""))]
        kernels += [("QUANTCLI_KERNELS", found.forced)] if found.forced else []
        kernels += [(v.name, ("used: " if v.used else "not used: ") + v.why) for v in found.variants]
        memory = [("memory", f"{_size(found.memory)}, {_size(found.available)} of it free")]
        memory += [("limit", f"{_size(found.limit)} for this process")] if found.limit is not None else []
        return [
            ("quantcli", [("version", found.version), ("Python", found.python), ("from", found.package)]),
            ("kernels", kernels),
            (
                "machine",
                [
                    ("system", found.system),
                    ("processor", found.processor),
                    ("threads", f"{found.threads} by default, of {found.processors} processors"),
                    *memory,
                    *((place.name, _place(place)) for place in found.places),
                ],
            ),
            ("extras", [(extra.name, _extra(extra)) for extra in found.extras]),
            ("targets", [(target.name, _target(target)) for target in found.targets]),
        ]


def _size(nbytes: int | None) -> str:
    return "unknown" if nbytes is None else t.size(nbytes)


def _place(place: Place) -> str:
    return f"{_size(place.free)} free in {place.path}" + (f": {place.problem}" if place.problem else "")


def _extra(extra: Extra) -> str:
    """Whether an extra is installed, and what for."""
    missing = [name for name, version in extra.packages.items() if version is None]
    state = "installed" if not missing else f"not installed (pip install 'quantcli[{extra.name}]')"
    state += f": {extra.purpose}" if extra.purpose else ""
    return state + (f"; missing: {', '.join(missing)}" if 0 < len(missing) < len(extra.packages) else "")


def _target(target: Target) -> str:
    here = ", ".join(f"{name} {version}" for name, version in target.installed.items())
    return f"{target.needs or target.runtime}{f'; installed here: {here}' if here else ''}"
