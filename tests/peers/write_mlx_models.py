"""Runs in a peers' environment: what mlx-lm's models read of config.json, for quantcli/layouts/mlx/table.json.

    python write_mlx_models.py quantcli/layouts/mlx/table.json

`types` has a row for every type of model: `needs`, the keys without which it does not load, and `reads`, all others
that it knows; `text` has the same for the part that reads text, where a model keeps that in `text_config`.
"""

from __future__ import annotations

import ast
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx_lm
from mlx_lm.utils import MODEL_REMAPPING

FOLDER = Path(mlx_lm.__file__).parent / "models"


def bases(tree: ast.Module, node: ast.ClassDef) -> list[dict[str, list[str]]]:
    """The fields that a class inherits from one of its own module, or of another one of mlx-lm's models."""
    found = []
    for base in node.bases:
        module, _, name = ast.unparse(base).rpartition(".")
        found.append(fields(parsed(module), name) if module else fields(tree, name) or imported_as(tree, name))
    return [part for part in found if part is not None]


def fields(tree: ast.Module, name: str) -> dict[str, list[str]] | None:
    """The fields of a dataclass in a module: those without a default, and the others."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            listed = [n for n in node.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)]
            found = [(n.target.id, n.value is None) for n in listed if isinstance(n.target, ast.Name)]
            more = bases(tree, node)
            usual = {key for key, needed in found if not needed}
            needs = {key for part in more for key in part["needs"]} - usual | {key for key, needed in found if needed}
            reads = {key for part in more for key in part["reads"]} | usual
            return {"needs": sorted(needs), "reads": sorted(reads - needs)}
    return None


def text_args(tree: ast.Module) -> tuple[str, str] | None:
    """The module and the class of the arguments that a model makes of text_config."""
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "from_dict"):
            continue
        if not node.args or "text_config" not in ast.unparse(node.args[0]):
            continue
        module, _, name = ast.unparse(node.func.value).rpartition(".")
        return module, name
    return None


def parsed(name: str) -> ast.Module:
    return ast.parse((FOLDER / f"{name}.py").read_text())


def row(name: str) -> dict[str, Any] | None:
    tree = parsed(name)
    own = fields(tree, "ModelArgs")
    if own is None:
        imported = [n for n in tree.body if isinstance(n, ast.ImportFrom) and n.level == 1]
        home = next((n.module for n in imported if any(a.name == "ModelArgs" for a in n.names)), None)
        own = fields(parsed(home), "ModelArgs") if home else None
    if own is None:
        return None
    text = text_args(tree)
    base = next((n.module for n in tree.body if isinstance(n, ast.ImportFrom) and n.level == 1 and n.module
                 and any(a.asname in ("Qwen3_5Model",) or a.name == "Model" for a in n.names)), None)  # fmt: skip
    if text is None and base is not None and "text_config" in own["needs"]:
        tree, text = parsed(base), text_args(parsed(base))
    if text is None:
        return own
    module, cls = text
    found = fields(parsed(module) if module else tree, cls) or imported_as(tree, cls)
    return own if found is None else {**own, "text": found}


def imported_as(tree: ast.Module, name: str) -> dict[str, list[str]] | None:
    """The fields of a class that a module imports under a name."""
    for node in tree.body:
        for alias in node.names if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module else ():
            if (alias.asname or alias.name) == name:
                return fields(parsed(str(node.module)), alias.name)
    return None


def main() -> None:
    names = sorted(path.stem for path in FOLDER.glob("*.py"))
    rows = {name: found for name in names if (found := row(name)) is not None}
    rows |= {alias: rows[name] for alias, name in MODEL_REMAPPING.items() if name in rows and alias not in rows}
    lines = [f'  "{name}": {json.dumps(rows[name])}' for name in sorted(rows)]
    text = ",\n".join(lines)
    head = f'{{"mlx_lm": "{version("mlx-lm")}", "types": {{\n'
    Path(sys.argv[1]).write_text(f"{head}{text}\n}}}}\n")


if __name__ == "__main__":
    main()
