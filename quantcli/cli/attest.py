"""`quantcli attest`: Write a statement of what a model was made from, to sign."""

from __future__ import annotations

import click

from quantcli.cli import _help, options


@_help.command(
    "attest",
    examples=(
        ("quantcli attest model-w4g128 --source model -o model.intoto.json", "digests, source, recipe, version"),
        ("quantcli verify model-w4g128 --statement model.intoto.json", "is it the model that this is about"),
    ),
)
@click.argument("dst", metavar="DST", type=_help.MODEL)
@_help.option(
    "--source",
    metavar="SRC",
    type=_help.MODEL,
    help="The model it was made from, whose files are named.",
    group="Common",
)
@_help.option(
    "--recipe",
    type=_help.FILE,
    help="The recipe it was made by.",
    show_default="that of its header or model card",
    group="Common",
)
@_help.option(
    "-o",
    "--output",
    type=_help.WRITTEN,
    help="The file to write, replacing it.",
    show_default="standard output",
    group="Common",
)
@_help.option(
    "--source-uri",
    metavar="URI",
    help="Where the source is from.",
    show_default="what a URL of the hub or the folder of a download tells",
    group="Output",
)
@_help.option(
    "--revision",
    metavar="COMMIT",
    help="The commit of the source.",
    show_default="what a URL of the hub or the folder of a download tells",
    group="Output",
)
@options.threads
@options.console
def command(
    dst: str,
    source: str | None,
    recipe: str | None,
    output: str | None,
    source_uri: str | None,
    revision: str | None,
    threads: int | None,
    console: options.Console,
) -> None:
    """Write an in-toto statement about the model DST: SHA-256 of its files and of those it was made from, its recipe
    and the version of quantcli, as SLSA provenance.

    It holds no time: the same files give the same statement. Tools such as cosign sign it; verify --statement checks
    DST by it, and with --source makes DST again. Where DST is in quantcli's own layout, SRC must have the weights whose
    digests it records; of other layouts that is not checked here.
    """
    from quantcli.folders import attest
    from quantcli.passes.origin import check_source

    count = options.thread_count(threads)

    if output is not None:
        options.check_outputs([output], [dst, source, recipe])
        attest.check_place(output, [path for path in (dst, source) if path is not None])
    for path in filter(None, (dst, source)):
        attest.files_of(path)  # what has no files to name is refused before the weights are read
    if source is not None:
        with console.bar("checking the source") as bar:
            checked = check_source(dst, source, threads=count, progress=bar)
        if not checked:
            console.inform(f"{dst} holds no digests of the weights it was made from: {source} is taken at your word")
    known = attest.recipe_in(dst, recipe)
    if known is None:
        told = f"nothing in {dst} tells that quantcli made it: the statement says so on your word"
        console.inform(f"{told}; --recipe names the recipe it was made by")
    with console.bar("reading") as bar:
        found = attest.statement(
            dst,
            source,
            recipe=known,
            uri=source_uri,
            revision=revision,
            threads=count,
            progress=bar,
        )
    if source is None:
        console.inform("the statement says nothing of what the model was made from; --source names it")
    text = attest.text_of(found)
    if output is None or console.json:
        click.echo(text, nl=False)
    if output is not None:
        options.replace_file(output, text, [dst, source, recipe])
        console.inform(f"{output}: {attest.summary(found)}")


PROVIDES = command
