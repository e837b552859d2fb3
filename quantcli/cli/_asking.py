"""What may be asked of the tensors of a model: schemes, rules, which ones, for which target."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from quantcli import registry
from quantcli.cli import _gating, _help, _patterns, options
from quantcli.cli._help import F
from quantcli.errors import UsageError, printable
from quantcli.scheme import GRANULARITIES, ROUNDINGS, SCALE_DTYPES

if TYPE_CHECKING:
    from quantcli.planning.order import Order
    from quantcli.planning.recipe import Recipe


CALIBRATIONS = _help.Names(
    registry.names("calibrators"), partial(registry.summary, "calibrators"), auto="the best of these, tensor by tensor"
)
"""Every calibration there is."""


def calibrations(text: str) -> Callable[[F], F]:
    """--calibration, for several of them."""
    usual, kind = "the default of quantize", options.Several(CALIBRATIONS)
    return _help.option("--calibration", type=kind, metavar="LIST", help=text, show_default=usual, group="Search")


def names(text: str) -> Callable[[F], F]:
    """--scheme, for several schemes by name."""
    kind = options.Several(str)
    return _help.option("--scheme", type=kind, metavar="LIST", group="Common", help=f"{text}; see formats.")


level_counts = options.numbers(
    "--levels", None, "Learned codebooks of so many levels beside them, such as 3,6,12.", group="Search", shown="none"
)
"""--levels, for several numbers of levels."""

symmetric = _help.option(
    "--symmetric/--asymmetric",
    default=None,
    help="Codes around 0, or with a zero point.",
    show_default="symmetric",
    group="Scheme",
)
"""--symmetric and --asymmetric."""

schemes = _help.options(
    _help.option(
        "--scheme",
        metavar="NAME",
        group="Common",
        help="A scheme by name: W4A16, W8A8, FP8_DYNAMIC, FP8_BLOCK, NVFP4A16, MXFP4 and others; see formats.",
    ),
    _help.option("--bits", type=int, metavar="N", help="Bits per code, 1 to 16.", show_default="4", group="Common"),
    _help.option(
        "--group-size",
        type=int,
        metavar="N",
        show_default="128; --to mlx, bnb-nf4: 64; gguf: 32",
        group="Common",
        help="Weights along the last axis that share a scale; -1 per channel, 0 per tensor.",
    ),
    _help.option("--granularity", type=click.Choice(GRANULARITIES), help="What shares a scale.", group="Scheme"),
    _help.option("--axis", type=int, metavar="N", help="The channel axis.", show_default="0", group="Scheme"),
    symmetric,
    _help.option(
        "--grid",
        type=click.Choice(["restricted", "full"]),
        help="Symmetric codes without or with the lowest.",
        group="Scheme",
    ),
    _help.option(
        "--zero-point",
        type=click.Choice(["int", "float"]),
        show_default="int",
        group="Scheme",
        help="Asymmetric: a whole zero point, or a float offset (0 is then not exact).",
    ),
    _help.option("--calibration", type=CALIBRATIONS, help="How scales are found.", show_default="mse", group="Search"),
    _help.option(
        "--effort",
        type=click.Choice(["fast", "default", "best", "exact"]),
        help="How long to search.",
        show_default="default",
        group="Search",
    ),
    _help.option(
        "--mse-norm", type=float, metavar="P", help="Make the error of mse |e|^P.", show_default="2", group="Search"
    ),
    _help.option(
        "--percentile",
        type=float,
        metavar="P",
        help="Share of the weights inside the range.",
        show_default="99.9",
        group="Search",
    ),
    _help.option(
        "--rounding",
        type=click.Choice(ROUNDINGS),
        group="Scheme",
        help="To the nearest code, so that the errors of a row add up to 0, or (second-order) so that they cost "
        "little in the output of the layer.",
        show_default="sum-preserving for integers and in convolutions, else nearest, as where a calibration is named; "
        "with --statistics second-order",
    ),
    _help.option(
        "--type",
        "format_",
        type=_help.Names(registry.names("formats"), partial(registry.summary, "formats")),
        help="Number format.",
        show_default="int",
        group="Scheme",
    ),
    _help.option("--levels", type=int, metavar="N", help="Levels of a learned codebook, 2 to 256.", group="Scheme"),
    _help.option(
        "--codebook",
        type=_help.FILE,
        help="Levels to use: numbers in a text or .npy file.",
        group="Scheme",
    ),
    _help.option(
        "--scale-dtype",
        type=click.Choice(SCALE_DTYPES),
        metavar="NAME",
        help="How scales are stored, such as float16; see formats.",
        group="Scheme",
        show_default="as 16-bit weights are, else float16 where it holds them",
    ),
)
"""--bits and all else that makes a scheme."""

selection = _help.options(
    _help.option(
        "--include",
        multiple=True,
        type=_patterns.Pattern(),
        metavar="PATTERN",
        group="Selection",
        help="Quantize only these: a glob, or a regular expression after re:.",
    ),
    _help.option(
        "--exclude",
        multiple=True,
        type=_patterns.Pattern(),
        metavar="PATTERN",
        help="Keep these as they are.",
        group="Selection",
    ),
    _help.option(
        "--no-default-keep",
        is_flag=True,
        help="Quantize every float tensor of two or more dimensions.",
        group="Selection",
    ),
    _help.option(
        "--keep-embeddings/--no-keep-embeddings",
        default=None,
        help="Keep embeddings and output heads as they are, or quantize them.",
        show_default="as the target's own tools: --to gguf and mlx quantize them",
        group="Selection",
    ),
)
"""Which tensors: --include, --exclude, --no-default-keep and --keep-embeddings."""

memory = _help.option(
    "--memory",
    metavar="SIZE",
    type=_gating.Limit(),
    group="Run",
    help="What the second moments of one layer may take, such as 500MiB, beside 20 MiB for each thread; a layer "
    "that needs more is refused before any weight is read. The output does not depend on it.",
    show_default="no limit: 64 MiB for 4,096 inputs, 4 GiB for 32,768",
)
"""--memory."""

statistics = _help.options(
    _help.option(
        "--statistics",
        type=_help.FILE,
        group="Search",
        help="Means and second moments of the inputs of layers, in .safetensors or a folder (quantcli help "
        "statistics): codes and scales are chosen for the least error of a layer's output.",
    ),
    _help.option(
        "--allow-unweighted",
        is_flag=True,
        group="Search",
        help="Quantize layers that --statistics has nothing of, as without it.",
    ),
    memory,
)
"""--statistics, --allow-unweighted and --memory."""

recipe = _help.options(
    _help.option(
        "--recipe",
        type=_help.FILE,
        group="Common",
        help="Schemes by pattern, in YAML, or a preset: llm, embedding, cnn, diffusion, comfyui.",
    ),
    _help.option(
        "--override",
        multiple=True,
        metavar="PATTERN:KEY=VALUE,...",
        group="Selection",
        help="An extra rule, such as '*.down_proj:bits=8,group-size=32' or 'head*:keep'; the last that matches wins.",
    ),
    _help.option(
        "--importance",
        type=_help.FILE,
        group="Search",
        help="How much the error of each column counts: mean squared activations by tensor name in .safetensors, "
        ".npy or .npz, or an importance matrix of llama.cpp (GGUF or .dat).",
    ),
    _help.option(
        "--activation-scales",
        type=_help.FILE,
        group="Scheme",
        help="Measured scales of inputs for the schemes FP8 and NVFP4: MODULE.input_scale in .safetensors or a folder.",
    ),
)
"""--recipe, --override and --importance."""


def granularity(granularity: str | None, group_size: int | None, axis: int | None) -> dict[str, Any]:
    """Scheme fields from --granularity, --group-size (-1 per channel, 0 per tensor) and --axis.

    Raises UsageError where they contradict each other.
    """
    if group_size is not None and group_size <= 0:
        if group_size < -1:
            hint = "use 1 or more, -1 per channel or 0 per tensor"
            raise UsageError(f"{group_size} is not a group size", place=["--group-size"], hint=hint)
        meant = "tensor" if group_size == 0 else "channel"
        if granularity not in (None, meant):
            raise UsageError(f"{group_size} means {meant}, not {granularity}", place=["--group-size"])
        granularity, group_size = meant, None
    if axis is not None and granularity is None and group_size is None:
        raise UsageError("an axis needs --granularity channel", place=["--axis"])
    fields: dict[str, Any] = {"granularity": granularity or "group"}
    if group_size is not None:
        fields["group_size"] = group_size
    if axis is not None:
        fields["axis"] = axis
    return fields


_SETS = {
    "format": ("format_", "levels", "codebook", "calibration"),
    "calibration": ("calibration", "mse_norm", "percentile", "effort"),
    "granularity": ("granularity", "group_size", "axis"),
    "norm": ("mse_norm",),
}
"""The parameters that may have set a field of a scheme, where they are not just the one of its name."""


def option_name(parameter: str, value: Any = None) -> str:
    """How a parameter with this value is written on the command line.

    >>> option_name("format_"), option_name("group_size", 32), option_name("symmetric", False)
    ('--type', '--group-size', '--asymmetric')
    """
    if parameter == "symmetric" and value is False:
        return "--asymmetric"
    return "--type" if parameter == "format_" else f"--{parameter.replace('_', '-')}"


@contextlib.contextmanager
def naming_options(asked: Mapping[str, Any]) -> Iterator[None]:
    """Make an error about a field of the default scheme name the option that set it, if one did."""
    try:
        yield
    except UsageError as error:
        place = [word for word in error.place if word != "options"] or error.place
        if len(place) > 1 and place[-2] != "default":  # of a rule, which says where it stands
            raise
        field = place[-1] if place else ""
        for parameter in _SETS.get(field, (field,)):
            if asked.get(parameter) not in (None, ()):
                option = option_name(parameter, asked[parameter])
                raise UsageError(error.problem, place=[option], hint=error.hint) from None
        if asked.get("scheme") is not None:
            raise UsageError(error.problem, place=["--scheme", *place[-1:]], hint=error.hint) from None
        raise


def order(asked: Mapping[str, Any], recipe: Recipe | None = None, *, output: str | None = None) -> Order:
    """The typed order that options make, those of a recipe behind them; recipe: where it is known already. output: its
    name, which tells the target where nothing else does."""
    from quantcli.planning.order import made, named_by

    inferred = named_by(output)
    return made(
        recipe_of({**asked, "to": asked["to"] or inferred}) if recipe is None else recipe,
        include=asked["include"],
        exclude=asked["exclude"],
        keep_defaults=not asked["no_default_keep"],
        keep_embeddings=asked["keep_embeddings"],
        to=asked.get("to"),
        inferred=inferred,
        container=asked.get("container", False),
        max_shard_size=asked.get("max_shard_size"),
        importance=asked.get("importance"),
        statistics=asked.get("statistics"),
        allow_unweighted=asked.get("allow_unweighted", False),
        memory=asked.get("memory"),
        activation_scales=asked.get("activation_scales"),
        digest=asked.get("digest"),
        on_nonfinite=asked.get("on_nonfinite"),
    )


def asked_recipe(asked: Mapping[str, Any], fields: dict[str, Any]) -> Recipe:
    """The recipe of --recipe and --override, with fields of the default scheme on top."""
    from quantcli.planning import recipe

    return recipe.load(asked["recipe"], fields, [recipe.override(text) for text in asked["override"]])


def named_scheme(name: str) -> dict[str, Any]:
    """The fields of a scheme that --scheme names. Raises UsageError."""
    from quantcli.planning.named import named

    return named(name, "--scheme")


def recipe_of(asked: Mapping[str, Any]) -> Recipe:
    """The schemes that are asked for; of what is left open, those that are usual for the target."""
    where = {name: asked[name] for name in ("granularity", "group_size", "axis")}
    is_given = any(value is not None for value in where.values())
    fields: dict[str, Any] = granularity(**where) if is_given else {}
    if asked["scheme"] is not None:
        from quantcli.planning.recipe import over

        fields = over(named_scheme(asked["scheme"]), fields)
    for option, name in (
        ("bits", "bits"),
        ("symmetric", "symmetric"),
        ("grid", "grid"),
        ("zero_point", "zero_point"),
        ("calibration", "calibration"),
        ("format_", "format"),
        ("rounding", "rounding"),
        ("levels", "levels"),
        ("scale_dtype", "scale_dtype"),
    ):
        if asked[option] is not None:
            fields[name] = asked[option]
    method, own_types = _method(asked), ":" in (asked["to"] or "")
    if own_types and asked["scheme"] is not None:
        plain = asked["to"].partition(":")[0]
        hint = f"leave out one of them; --to {plain} takes schemes, and --override names those of some tensors"
        problem = f"{asked['to']} gives every tensor a type of its own"
        raise UsageError(problem, place=["--scheme", printable(asked["scheme"])], hint=hint)
    with naming_options(asked):
        if asked["recipe"] is None and (asked["scheme"] is None or own_types):
            from quantcli.planning.order import with_usual

            fields = with_usual({**fields, **method} if own_types else fields, asked["to"])
        fields |= method
        return asked_recipe(asked, {k: v for k, v in fields.items() if (k, v) != ("granularity", "group")})


def _method(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Scheme fields that other options imply: an option of a calibrator names it, levels make a codebook."""
    given = {
        name: asked[option]
        for option, name in (("effort", "effort"), ("mse_norm", "norm"), ("percentile", "percentile"))
        if asked[option] is not None
    }
    fields: dict[str, Any] = {"options": given} if given else {}
    if asked["calibration"] is None and ("norm" in given or "percentile" in given):
        fields["calibration"] = "mse" if "norm" in given else "percentile"
    if asked["codebook"] is not None:
        from quantcli.stores.levels import levels

        fields["codebook"] = levels(asked["codebook"])
    learned = asked["levels"] is not None or asked["codebook"] is not None or asked["calibration"] == "lloyd-max"
    if asked["format_"] is None and learned:
        fields["format"] = "codebook"
    return fields
