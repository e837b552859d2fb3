"""What is said where a budget cannot be met: in the unit that was asked for, what takes the room, and the way out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quantcli.errors import printable

if TYPE_CHECKING:
    from quantcli.folders.components import Chosen
    from quantcli.folders.job import Whole
    from quantcli.passes.budget import Planned
    from quantcli.passes.menus import Offer
    from quantcli.planning.order import Order


@dataclass(frozen=True, slots=True)
class Unit:
    """What a target was given in: as it was asked for, bytes in one of the unit, its name, decimals of a least size."""

    asked: str
    size: float
    name: str
    decimals: int

    def text(self, nbytes: int) -> str:
        """So many bytes, for people."""
        return f"{nbytes / self.size:,.0f}" if self.size == 1 else f"{nbytes / self.size:.3g}"

    def least(self, nbytes: int) -> str:
        """The least target that holds so many bytes: rounded up, so that it may be asked for."""
        scale = 10**self.decimals
        return f"{math.ceil(nbytes / self.size * scale) / scale:.{self.decimals}f} {self.name}"


def unit_of(name: str, text: str, parameters: int) -> Unit:
    """The unit of a target that was typed so."""
    from string import ascii_letters

    from quantcli.reports.gates import parsed

    number = text.strip().rstrip(ascii_letters).strip()
    if name == "target_bpw":
        return Unit(f"{number} bits per weight", parameters / 8, "bits per weight", 3)
    word = text.strip()[len(number) :].strip()
    size = parsed("target_size", f"1{word}")
    return Unit(f"{number} {word if size > 1 else 'bytes'}", size, word if size > 1 else "bytes", 3 if size > 1 else 0)


def what_takes_the_room(least: Planned, unit: Unit, offer: Offer, kept: Mapping[str, Whole]) -> str:
    """Why a target is out of reach: the smallest output, and what fills it."""
    from quantcli.folders.job import kept_sources
    from quantcli.stores.pipelines import within

    held, quantized, open_ = list[tuple[int, str, str]](), 0, False
    for menu in offer.menus:
        subject = menu.subject
        if subject.name not in least.plans:
            held.append((subject.source.share, subject.name, "as it is"))
            continue
        plan = least.plans[subject.name]
        nbytes = subject.nbytes_of(plan)
        for t in plan.tensors:
            if t.scheme is None:
                held.append((nbytes(t.info.name), within(subject.name, t.info.name), t.reason))
            else:
                quantized += nbytes(t.info.name)
        # Whether float16 holds all scales of wider weights is known only once they are measured.
        wider = [t for t in plan.tensors if t.scheme and t.scale_dtype == "F16" and t.info.dtype != "F16"]
        open_ = open_ or (not least.measured and bool(wider))
    held += [(source.share, name, "kept whole") for name, source in kept_sources(kept).items()]
    held.sort(key=lambda entry: (-entry[0], entry[1]))
    of_kept = sum(n for n, _, _ in held)
    large = [entry for entry in held[:3] if entry is held[0] or 10 * entry[0] >= of_kept]
    named = [f"{printable(name, 100)} {unit.text(n)} ({printable(reason, 40)})" for n, name, reason in large]
    more = f" and {len(held) - len(large)} more" if len(held) > len(large) else ""
    filled = [f"kept tensors {unit.text(of_kept)}: {', '.join(named)}{more}"] if held else []
    filled += [f"quantized tensors {unit.text(quantized)}", f"header {unit.text(least.size - of_kept - quantized)}"]
    what = "pipeline" if "" not in least.plans else "file"
    reached = f"the smallest {what} these options allow has {'at least ' if open_ else ''}{unit.least(least.size)}"
    return f"{unit.asked} cannot be met: {reached} ({'; '.join(filled)})"


def way_out(chosen: Chosen, order: Order, least: Planned, *, smaller: str, widths: bool) -> str:
    """What makes the smallest output smaller, and else to ask for more. smaller: how to ask for smaller schemes, empty
    where there are none; widths: whether the target has several."""
    from quantcli.folders.job import kept_sources
    from quantcli.planning.reasons import ALL, TABLES, TABLES_TOO, VECTORS, which

    ways = []
    kept = {t.reason for plan in least.plans.values() for t in plan.tensors if t.scheme is None}
    native = "--to native " if any(one.to is not None for one in chosen.models.values()) else ""
    if widths and chosen.kept_bytes > least.size // 2:
        held = kept_sources(chosen.kept)
        largest = max(held, key=lambda name: held[name].share)
        ways.append(f"quantize it too with --override '{largest}/*:bits=8'")
    elif order.keep_embeddings and kept & TABLES:
        ways.append("leave out --keep-embeddings")
    elif kept & which(lambda reason: ALL in reason.ways) - TABLES - VECTORS and (native or order.keep_defaults):
        ways.append(f"quantize such tensors too with {native}{ALL}")
    elif kept & TABLES and (native or order.keep_embeddings is None):
        ways.append(f"quantize such tensors too with {native}{TABLES_TOO}")
    if smaller:
        ways.append(smaller)
    return ", or ".join([*ways, "ask for more"])
