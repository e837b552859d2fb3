"""Write quantcli/architectures.json: what transformers makes of the tensors of a checkpoint, by type of model.

    .venv-peers/current/bin/python tests/peers/write_architectures.py quantcli/architectures.json

Every class of transformers' automatic mappings is built on the meta device from its default configuration, a few layers
of it. Of each type of model the file says which matrices no plain Linear holds, which Linear layers share the tensor of
another one, which weights the code reads past their layer, and how names in files become names of modules.
"""

from __future__ import annotations

import ast
import json
import os
import re
import signal
import sys
import warnings
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error")
warnings.filterwarnings("ignore")

import torch  # noqa: E402
import transformers  # noqa: E402
from transformers.conversion_mapping import get_model_conversion_mapping  # noqa: E402
from transformers.core_model_loading import MergeModulelist, WeightConverter, WeightRenaming, rename_source_key  # noqa: E402
from transformers.models.auto import modeling_auto  # noqa: E402
from transformers.models.auto.configuration_auto import CONFIG_MAPPING  # noqa: E402

LAYERS = 8
"""Layers of a model that are built: hybrid models repeat themselves within so many."""

SECONDS = 40
"""What building one model may take."""

COUNTS = ("num_hidden_layers", "encoder_layers", "decoder_layers", "num_layers", "n_layer", "n_layers", "depth",
          "num_decoder_layers")  # fmt: skip

DIRECT, INITIALIZED = "read", "initialized"
"""The kinds of a Linear whose weight is read by the code around it: when it runs, or only while it is loaded."""


def numberless(name: str) -> str:
    """A name with # for its numbers, as quantcli.architectures has it.

    >>> numberless("layers.0.mlp.experts.12.up_proj"), numberless("conv1.0"), numberless("experts.expert_3.fc2")
    ('layers.#.mlp.experts.#.up_proj', 'conv1.#', 'experts.expert_#.fc2')
    """
    return re.sub(r"(?:(?<![^.])|(?<=expert_))\d+(?![^.])", "#", name)


def read_directly() -> dict[str, set[str]]:
    """By class, paths from an object of it to modules whose weight its methods read, but for those that initialize."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in (Path(transformers.__file__).parent / "models").glob("*/modeling_*.py"):
        for kind in ast.parse(path.read_text()).body:
            for method in kind.body if isinstance(kind, ast.ClassDef) else []:
                if not isinstance(method, ast.FunctionDef):
                    continue
                if not re.search("init|resize|tie|embedding", method.name):
                    found[kind.name].update(weights_of("self", method.body))
    return found


def weights_of(owner: str, body: list[ast.stmt]) -> set[str]:
    """Paths x.y of the expressions owner.x.y.weight that statements read, with # for an index."""
    found = set()
    for node in (n for statement in body for n in ast.walk(statement)):
        if not (isinstance(node, ast.Attribute) and node.attr == "weight" and isinstance(node.ctx, ast.Load)):
            continue
        parts: list[str] = []
        inner: ast.expr = node.value
        while isinstance(inner, (ast.Attribute, ast.Subscript)):
            parts.append(inner.attr if isinstance(inner, ast.Attribute) else "#")
            inner = inner.value
        if parts and isinstance(inner, ast.Name) and inner.id == owner:
            found.add(".".join(reversed(parts)))
    return found


def classes() -> dict[str, set[str]]:
    """Classes of models in the automatic mappings, each with the types of model it is named for."""
    found: dict[str, set[str]] = defaultdict(set)
    for mapping in (getattr(modeling_auto, n) for n in dir(modeling_auto) if n.endswith("_MAPPING_NAMES")):
        for model_type, named in mapping.items():
            for name in named if isinstance(named, (tuple, list)) else [named]:
                found[name].add(model_type)
    for name in dir(transformers):  # parts of models that are saved by themselves are in no mapping
        if name not in found and re.search("(?:Model|Transformer)$", name):
            try:
                config = getattr(transformers, name).config_class
            except (ImportError, AttributeError):
                continue
            if getattr(config, "model_type", ""):
                found[name].add(config.model_type)
    return found


def shrink(config: Any, depth: int = 0) -> None:
    """Make a configuration, and those in it, one of few layers."""
    for key in COUNTS:
        if isinstance(getattr(config, key, None), int) and getattr(config, key) > LAYERS:
            setattr(config, key, LAYERS)
    for value in list(vars(config).values()):
        if isinstance(value, transformers.PretrainedConfig) and depth < 3:
            shrink(value, depth + 1)


def config_of(kind: Any, model_type: str) -> Any:
    """The class of the configuration of a type of model, or of a part of one."""
    return CONFIG_MAPPING.get(model_type, kind.config_class)


def built(kind: Any, model_type: str) -> Any:
    """A model on the meta device; None where its default configuration does not make one."""
    for few in (True, False):
        signal.alarm(SECONDS)
        try:
            config = config_of(kind, model_type)()
            if few:
                shrink(config)
            with torch.device("meta"):
                return kind(config)
        except Exception:
            continue
        finally:
            signal.alarm(0)
    return None


def renames(model: Any) -> list[list[str]]:
    """How names in files become names of modules: [scope, prefix of the base model, expression with a group g0, g1, ..
    around each alternative, what the match becomes], in order; for tensors that are merged or split, the last is
    `experts` or `changed`."""
    found = []
    for change in get_model_conversion_mapping(model, add_legacy=False):
        scope = "" if change.scope_prefix is None else f"{change.scope_prefix}."
        place = [scope, f"{change.base_model_prefix}." if change.scope_prefix is not None else ""]
        pattern = change.compiled_sources.pattern
        if isinstance(change, WeightConverter):
            merged = any(isinstance(o, MergeModulelist) for o in change.operations)
            kind = "experts" if merged else "changed" if takes_packed(change) else "unloadable"
            found.append([*place, pattern, "", kind])
        elif type(change) is WeightRenaming or len(change.source_patterns) == 1:
            found.append([*place, pattern, change.target_patterns[0], ""])
    return found


def takes_packed(change: Any) -> bool:
    """Whether transformers can make a change that decodes packed weights first of one of tensors named `weight`."""
    sources, targets = change._original_source_patterns, change._original_target_patterns
    if not all(source.endswith(".weight") for source in sources):
        return True
    packed = [f"{source}{part}" for source in sources for part in ("", "_scale", "_packed", "_shape")]
    try:
        change.copy(packed, targets, operations=list(change.operations))
    except ValueError:
        return False
    return True


def file_name(model: Any, name: str) -> str:
    """The name under which transformers saves a tensor."""
    back = [change.reverse_transform() for change in get_model_conversion_mapping(model, add_legacy=False)[::-1]]
    plain = [c for c in back if isinstance(c, WeightRenaming)]
    return str(rename_source_key(name, plain, [], reverse=True)[0])


def initialized(module: Any, initialize: Any) -> Iterator[tuple[Any, Any]]:
    """The modules below one, and it, each with what initializes it: the method of the nearest model around it."""
    if isinstance(module, transformers.PreTrainedModel):
        initialize = module._init_weights
    for child in module.children():
        yield from initialized(child, initialize)
    yield module, initialize


def read_while_loading(model: Any, plain: dict[str, Any]) -> set[str]:
    """Names of Linear layers whose weight the initialization of other modules, or of them, cannot do without."""
    found: set[str] = set()
    names = {id(module): name for name, module in plain.items()}
    weights = {name: module._parameters.pop("weight") for name, module in plain.items()}
    missed: list[str] = []
    own = torch.nn.Module.__getattr__

    def watched(module: Any, name: str) -> Any:
        if name == "weight" and id(module) in names and "weight" not in module._parameters:
            missed.append(names[id(module)])
        return own(module, name)

    torch.nn.Module.__getattr__ = watched
    try:
        for module, initialize in initialized(model, model._init_weights):
            for _ in range(len(plain) + 1):
                missed.clear()
                try:
                    initialize(module)
                    break
                except AttributeError:
                    if not missed:
                        break
                    found.add(missed[-1])
                    plain[missed[-1]]._parameters["weight"] = weights[missed[-1]]
                except Exception:
                    break
    finally:
        torch.nn.Module.__getattr__ = own
        for name, module in plain.items():
            module._parameters["weight"] = weights[name]
    return found


def facts(model: Any, direct: dict[str, set[str]]) -> dict[str, Any]:
    """What is to be known of a model, with names of modules without the prefix of the base model."""
    prefix = f"{model.base_model_prefix}." if model.base_model_prefix else ""
    modules = dict(model.named_modules())
    layers = {n: m for n, m in modules.items() if type(m) is torch.nn.Linear}
    plain = set(layers)
    other = {
        n: type(m).__name__
        for n, m in modules.items()
        if n not in plain and getattr(getattr(m, "weight", None), "ndim", 0) == 2
    }
    for name, module in modules.items():
        inside = f"{name}." if name else ""
        for path in direct.get(type(module).__name__, ()):
            wanted = numberless(inside + path)
            other.update((n, DIRECT) for n in plain if n.startswith(inside) and numberless(n) == wanted)
    other = {**dict.fromkeys(read_while_loading(model, layers), INITIALIZED), **other}
    tied = {n.removesuffix(".weight") for n in getattr(model, "all_tied_weights_keys", None) or {}} | {
        n.removesuffix(".weight") for n in getattr(model, "_tied_weights_keys", None) or {}
    }
    shared = {n: file_name(model, f"{n}.weight").removesuffix(".weight") for n in tied & plain}
    return {
        "prefix": prefix,
        "other": {numberless(n.removeprefix(prefix)): kind for n, kind in other.items()},
        "shared": {numberless(n.removeprefix(prefix)): numberless(f.removeprefix(prefix)) for n, f in shared.items()},
        "float32": sorted(getattr(model, "_keep_in_fp32_modules", None) or ()),
    }


def late(*_: object) -> None:
    raise TimeoutError


def main() -> int:
    signal.signal(signal.SIGALRM, late)
    direct = read_directly()
    types: dict[str, dict[str, Any]] = {}
    lists: list[list[list[str]]] = []
    for name, named_for in sorted(classes().items()):
        try:
            kind = getattr(transformers, name, None)
            if not isinstance(kind, type) or not issubclass(kind, transformers.PreTrainedModel):
                continue
        except ImportError:
            continue
        for model_type in sorted(named_for):
            config = config_of(kind, model_type)
            if config is None or not issubclass(config, kind.config_class or object):
                continue
            model = built(kind, model_type)
            if model is None:
                continue
            found, changes = facts(model, direct), renames(model)
            known = types.setdefault(model_type, {**found, "renames": {}})
            known["prefix"] = known["prefix"] or found["prefix"]
            for key in ("other", "shared"):
                known[key] = dict(sorted({**known[key], **found[key]}.items()))
            known["float32"] = sorted({*known["float32"], *found["float32"]})
            lists += [changes] if changes and changes not in lists else []
            known["renames"][name] = lists.index(changes) if changes else None
    rows = [f"{json.dumps(name)}: {json.dumps(known)}" for name, known in sorted(types.items())]
    parts = {"types": "{\n" + ",\n".join(rows) + "\n}", "renames": "[\n" + ",\n".join(map(json.dumps, lists)) + "\n]"}
    text = "".join(f",\n{json.dumps(key)}: {value}" for key, value in parts.items())
    Path(sys.argv[1]).write_text(f'{{"transformers": "{transformers.__version__}"{text}}}\n')
    print(f"{len(types)} types of model, {len(lists)} ways in which names in files differ")
    return 0


if __name__ == "__main__":
    sys.exit(main())
