"""`quantcli doctor`: Tell what there is on this machine: kernels, memory, extras, runtimes."""

from __future__ import annotations

from quantcli.cli import _help, options


@_help.command(
    "doctor",
    examples=(
        ("quantcli doctor", "kernels and why these, memory, space, extras, targets"),
        ("quantcli doctor --json", "for a report of a problem"),
    ),
)
@options.document
@options.console
def command(output: str | None, console: options.Console) -> None:
    """Tell the version, which kernels are used and why, what the machine has, which extras are installed, the space
    where files are written, and what the runtimes of each target need.

    It changes nothing, and what is missing is no error: the exit code is 0.
    """
    from quantcli.passes.diagnose import diagnose
    from quantcli.reports.diagnosed import DoctorReport

    file = options.document_file(output, DoctorReport, [])
    options.show(DoctorReport(diagnose()), console, file=file)


PROVIDES = command
