"""`quantcli verify`: Check a quantized file, by itself or against its original."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from quantcli.cli import _help, options
from quantcli.errors import DataError, VersionError

if TYPE_CHECKING:
    from quantcli.passes.findings import Finding, Verified


@_help.command(
    "verify",
    examples=(
        ("quantcli verify model-w4g128.safetensors", "structure, digests, possible values"),
        ("quantcli verify model-w4g128.safetensors --source model.safetensors", "every code made again"),
    ),
)
@options.source
@_help.option(
    "--source",
    "original",
    metavar="ORIGINAL",
    type=click.Path(path_type=str),
    default=None,
    help="The model it was made from: every code is found again from it, and the errors measured.",
    group="Common",
)
@_help.option(
    "--importance",
    metavar="FILE",
    type=click.Path(path_type=str),
    default=None,
    help="What its columns were weighed by; needed to find such scales again.",
    group="Common",
)
@_help.option(
    "--all",
    "show_all",
    is_flag=True,
    help="Show every tensor, also where nothing is wrong.",
    group="Output",
)
@options.threads
@options.talk
def command(
    src: str,
    original: str | None,
    importance: str | None,
    show_all: bool,
    threads: int | None,
    talk: options.Talk,
) -> None:
    """Check that the quantized file or checkpoint folder SRC is what it says.

    By itself: header, shapes, digests of what was kept, padding, and that scales, zero points, levels and codes are
    possible ones. With --source: also that they are the right ones. The exit code is 0 when nothing is wrong, 1 when
    something is, and 2 when it could not be looked at. What another tool quantized is decoded whole.
    """
    from quantcli.models import open_model, under_one_name
    from quantcli.passes import verify
    from quantcli.planning.importance import load
    from quantcli.stores import need_file

    count = options.thread_count(threads)
    with contextlib.ExitStack() as stack:
        try:
            model = stack.enter_context(open_model(src))
        except VersionError:  # not a fault of the file
            raise
        except DataError as error:
            found = _damaged(src, original, error)
        else:
            need_file(model.source, "verifying")
            before = stack.enter_context(open_model(original)) if original is not None else None
            if before is not None:
                need_file(before.source, "verifying")
            if model.is_native:
                bar = stack.enter_context(talk.bar("verifying"))
                weighed = load(importance) if importance is not None else None
                known = before.stored if before is not None else None
                found = verify.verify(model.stored, known, threads=count, progress=bar, importance=weighed)
            else:
                if not model.quantized:
                    raise DataError("nothing in it is quantized", place=[src], hint="inspect shows any file")
                pair = under_one_name(before, model)[:2] if before is not None else (None, model)
                found = verify.decodable(pair[1], pair[0], original, threads=count)
        names = list(dict.fromkeys(f.tensor for f in found.findings if f.tensor))
        if show_all and found.tensors:
            names = [*model.stored, *(n for n in names if n not in model.stored)]
    if talk.json:
        options.print_json(_document(src, found))
    elif not talk.quiet:
        _print(src, found, names, talk, show_all)
    if not found.passed:
        few = [f.line() for f in found.findings[:1]]
        options.say(f"{src}: verification failed: {few[0]}{_more(len(found.findings) - 1)}")
        raise click.exceptions.Exit(1)


def _damaged(src: str, original: str | None, error: DataError) -> Verified:
    """The outcome for a file that cannot even be opened."""
    from quantcli.passes.findings import Finding, Verified

    finding = Finding(tensor="", check="structure", problem=str(error).removeprefix(f"{src}: "))
    return Verified(tensors=0, quantized=0, against=original, findings=(finding,), unchecked=(), checks=("structure",))


def _more(count: int) -> str:
    return f"; and {count} more" if count > 0 else ""


def _document(src: str, found: Verified) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "command": "verify",
        "file": src,
        "source": found.against,
        "passed": found.passed,
        "tensors": found.tensors,
        "quantized": found.quantized,
        "findings": [asdict(f) for f in found.findings],
        "unchecked": list(found.unchecked),
    }


def _print(src: str, found: Verified, names: list[str], talk: options.Talk, show_all: bool) -> None:
    from quantcli import terminal as t
    from quantcli.errors import printable

    checks = found.checks
    how = f" against {printable(found.against, 200)}" if found.against is not None else ""
    what = f"{found.tensors:,} tensors, {found.quantized:,} quantized"
    if found.passed:
        t.line(f"{printable(src, 200)}: ok{how}: {what}; {', '.join(checks)}", sys.stdout)
    else:
        bad = len({f.tensor for f in found.findings if f.tensor})
        t.line(f"{printable(src, 200)}: FAILED{how}: {what}, {bad:,} wrong", sys.stdout)
    for said in found.unchecked:
        t.line(f"not checked: {said}", sys.stdout)
    limit = None if show_all else t.screenful()
    if names:
        sys.stdout.write("\n")
        table = t.Table([t.Column("tensor"), *(t.Column(c) for c in checks)])
        failed = {(f.tensor, f.check) for f in found.findings}
        for name in names if limit is None else names[: max(1, limit)]:
            marks = ["FAILED" if (name, c) in failed else "ok" for c in checks]
            table.add(name, *marks, style="red" if "FAILED" in marks else "")
        t.show(table, sys.stdout, colour=talk.coloured)
        if limit is not None and len(names) > limit:
            sys.stdout.write(f"and {len(names) - limit} more; --all shows them\n")
    _print_findings(found.findings, limit)
    sys.stdout.flush()


def _print_findings(findings: tuple[Finding, ...], limit: int | None) -> None:
    from quantcli import terminal

    if findings:
        sys.stdout.write("\n")
    for finding in findings if limit is None else findings[: max(1, limit)]:
        terminal.line(finding.line(), sys.stdout)
    if limit is not None and len(findings) > limit:
        sys.stdout.write(f"and {len(findings) - limit} more; --all shows them\n")


PROVIDES = command
