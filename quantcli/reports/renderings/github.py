"""GitHub Actions: annotations, one for each gate and tensor that fails.

An error per tensor that fails a gate, a notice with the verdict.
"""

from __future__ import annotations

from typing import TextIO

from quantcli import terminal as t
from quantcli.errors import printable
from quantcli.reports.documents import Display
from quantcli.reports.renderings import Rendering
from quantcli.reports.run import RunReport, RunReports

MOST = 10
"""Errors per gate: GitHub shows no more than ten of a step."""


def render(document: RunReports, stream: TextIO, display: Display) -> None:
    """Write the annotations."""
    for report in document.reports:
        failed = [g for g in report.gates if not g.passed]
        for gate in failed:
            title = f"quantcli {gate.title}"
            for failure in gate.failures[:MOST]:
                stream.write(_command("error", title, report, f"{failure.tensor}: {failure.message}"))
            if len(gate.failures) > MOST:
                stream.write(_command("error", title, report, f"and {len(gate.failures) - MOST} more tensors"))
            if not gate.failures:
                stream.write(_command("error", title, report, gate.outcome))
        for warning in report.warnings:
            stream.write(_command("warning", "quantcli", report, warning))
        gates = f"{len(report.gates) - len(failed)} of {len(report.gates)} gates passed, " if report.gates else ""
        s = report.summary
        stream.write(
            _command(
                "notice",
                "quantcli",
                report,
                f"{gates}SQNR {t.decibels(s.sqnr_db, s.exact)} dB, {s.bits_per_weight:.3f} bits per weight, "
                f"{t.size(s.bytes_out)}",
            )
        )


def _command(kind: str, title: str, report: RunReport, message: str) -> str:
    text = printable(f"{report.name}: {message}", 4000)
    return f"::{kind} title={_escaped(title, ',:')}::{_escaped(text)}\n"


def _escaped(text: str, more: str = "") -> str:
    """Percent-encoded as the runner decodes it."""
    for character in "%\r\n" + more:
        text = text.replace(character, f"%{ord(character):02X}")
    return text


PROVIDES = Rendering(forms=((RunReports, render),))
