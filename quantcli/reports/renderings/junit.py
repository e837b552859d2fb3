"""JUnit XML: a test case per gate, and per tensor that fails it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TextIO
from xml.sax.saxutils import escape, quoteattr

from quantcli.errors import printable
from quantcli.reports.documents import Display
from quantcli.reports.renderings import Rendering
from quantcli.reports.run import RunReport, RunReports


def render(document: RunReports, stream: TextIO, display: Display) -> None:
    """Write the document."""
    suites = [(report, list(_cases(report))) for report in document.reports]
    tests = sum(len(cases) for _, cases in suites)
    failed = sum(message is not None for _, cases in suites for _, message in cases)
    stream.write('<?xml version="1.0" encoding="UTF-8"?>\n')
    stream.write(f'<testsuites name="quantcli" tests="{tests}" failures="{failed}" errors="0">\n')
    for report, cases in suites:
        failed = sum(message is not None for _, message in cases)
        seconds = f"{report.summary.seconds or 0:.3f}"
        name = quoteattr(printable(report.name, 1000))
        stream.write(
            f'  <testsuite name={name} tests="{len(cases)}" failures="{failed}" errors="0" time="{seconds}">\n'
        )
        for case, message in cases:
            head = f'    <testcase classname={name} name={quoteattr(printable(case, 1000))} time="0"'
            if message is None:
                stream.write(head + "/>\n")
                continue
            text = printable(message, 4000)
            stream.write(
                f"{head}>\n      <failure message={quoteattr(text)}>{escape(text)}</failure>\n    </testcase>\n"
            )
        stream.write("  </testsuite>\n")
    stream.write("</testsuites>\n")


def _cases(report: RunReport) -> Iterator[tuple[str, str | None]]:
    """(name, what failed) of every test case; without gates one that says the report was made."""
    if not report.gates:
        yield "report", None
    for gate in report.gates:
        title = gate.title
        yield f"{title} {gate.shown_limit}", None if gate.passed else gate.message
        for failure in gate.failures:
            yield f"{title}: {failure.tensor}", failure.message


PROVIDES = Rendering(forms=((RunReports, render),), extensions=("xml",))
