"""What is asked of a model: the default scheme, rules for some tensors, and what else decides about each of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from quantcli.architectures import Architecture
from quantcli.scheme import Scheme
from quantcli.stores import Unsplit

if TYPE_CHECKING:
    from quantcli.layouts.writer import Again
    from quantcli.planning.inputs import InputScales
    from quantcli.planning.statistics import InputStatistics


@dataclass(frozen=True, slots=True)
class Rule:
    """A pattern and the scheme of the tensors it matches; None keeps them. optional: whether it may match nothing.
    preset: the preset it comes from, where that was chosen for the model; empty for what was asked. place: where it
    stands. rounding_given: whether it asks for a rounding or calibration of its own.
    """

    pattern: str
    scheme: Scheme | None
    reason: str | None = None
    optional: bool = False
    preset: str = ""
    place: str = field(default="rules", compare=False)
    rounding_given: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is asked of a model."""

    scheme: Scheme
    """The default scheme."""
    rules: tuple[Rule, ...] = ()
    """Ordered; the last that matches a tensor wins."""
    include: tuple[str, ...] = ()
    """Patterns of the tensors that may be quantized; of all where there are none."""
    exclude: tuple[str, ...] = ()
    """Patterns of those that are kept."""
    keep_defaults: bool = True
    """Whether norms, biases, routers, embeddings, heads and small tensors are kept."""
    keep_embeddings: bool | None = None
    """Whether embeddings and output heads are kept; None to do as the target's own tools."""
    max_shard_size: int | None = None
    """The most bytes a file of a checkpoint folder may have; None for as many files as there were."""
    statistics: InputStatistics | None = None
    """What is known of the inputs of layers: how much the error of each column counts."""
    rounding_given: bool = field(default=False, compare=False)
    """Whether a rounding was asked for, which statistics then do not change."""
    convolution_sums: bool | None = field(default=None, compare=False)
    """Whether convolutions in codebooks and formats of levels keep the sums of rows, which others do on request: True
    once some do, None where the plan is to find out."""
    allow_unweighted: bool = False
    """Whether tensors that the statistics have nothing of are quantized too."""
    memory: int | None = field(default=None, compare=False)
    """Bytes that the factor of one layer's second moments may take, as it changes no bytes of the output; None for what
    the largest takes."""
    inputs: InputScales | None = None
    """The measured scales of inputs."""
    ties: tuple[str, ...] = ()
    """Expressions for tensors that must have one scheme (see patterns.tied)."""
    to: str | None = None
    """The target: weights whose shape it cannot store are kept, and those its loader does not take."""
    architecture: Architecture | None = None
    """The type of model, which tells what loaders take."""
    container: bool = False
    """Whether the target is to write a container of tensors instead of a model."""
    unsplit: Mapping[str, Unsplit] = field(default_factory=dict, compare=False)
    """Tensors of experts that the source cannot arrange as the target needs them, with the reason."""
    again: Again | None = field(default=None, compare=False)
    """How the target writes the model again, where the source is in its format already."""
    from_recipe: frozenset[str] = field(default=frozenset(), compare=False)
    """Keys of a recipe that set include and exclude, which errors then name instead of the options."""
    preset: str = field(default="", compare=False)
    """The preset that was chosen for the model (see kinds), whose rules are among the others."""

    def place(self, name: str) -> str:
        """Where an error about include or exclude is: the key of the recipe, or the option."""
        return f"recipe: {name}" if name in self.from_recipe else f"--{name}"

    def as_dict(self, schemes: list[dict[str, Any]]) -> dict[str, Any]:
        """Plain values that `recipe.request_of` makes into this request again: schemes by their number in `schemes`,
        to which they are added; rules as [pattern, number or null, reason or null, whether optional, preset];
        importances by their digest; what is usual left out."""

        def number(scheme: Scheme) -> int:
            values = scheme.as_dict()
            if values not in schemes:
                schemes.append(values)
            return schemes.index(values)

        default = number(self.scheme)
        rules: list[list[Any]] = []
        for rule in self.rules:
            entry = [rule.pattern, None if rule.scheme is None else number(rule.scheme), rule.reason, rule.optional]
            more = [bool(rule.reason is not None), rule.optional, bool(rule.preset)]
            count = max((n for n, said in enumerate(more, 3) if said), default=2)
            rules.append([*entry, rule.preset][:count])
        digest = self.statistics.digest if self.statistics is not None else None
        return {"default": default, **({"rules": rules} if rules else {}), **self.others(digest)}

    def others(self, statistics: Any) -> dict[str, Any]:
        """What is asked beside schemes and rules, in plain values by the keys of recipes; what is usual is left out.
        statistics: what stands for the statistics or importances, None where there are none."""
        values = {
            "include": list(self.include),
            "exclude": list(self.exclude),
            "ties": list(self.ties),
            "importance" if self.statistics is None else self.statistics.key: statistics,
            "convolution_sums": bool(self.convolution_sums),
            "allow_unweighted": self.allow_unweighted,
            "keep_defaults": self.keep_defaults,
            "keep_embeddings": self.keep_embeddings,
            "max_shard_size": self.max_shard_size,
            "to": self.to,
            "container": self.container,
        }
        usual: dict[str, Any] = {
            "keep_defaults": True, "container": False, "allow_unweighted": False, "convolution_sums": False,
        }  # fmt: skip
        return {
            name: value for name, value in values.items() if value not in ([], None) and value is not usual.get(name)
        }
