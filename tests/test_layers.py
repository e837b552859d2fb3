"""The order of the modules, and what starting the command costs."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from making import environment, save

import quantcli

PACKAGE = Path(quantcli.__file__).parent

ORDER = [
    "errors", "interrupts", "dtypes", "registry", "scheme", "kernels", "tensors", "grouping", "packing", "metrics",
    "digest", "seal", "formats", "codes", "calibrators", "distributions", "theory", "settling", "fitting", "core",
    "fake", "llama", "stores", "adapters", "imatrix", "container", "patterns", "importance", "architectures",
    "exports", "plan", "plain", "recipe", "foreign", "evidence", "workers", "pipeline", "resuming", "reading",
    "measuring", "examining", "views", "comparing", "naming", "allocating", "sweeping", "planning", "statistics",
    "terminal", "markup", "unquantized", "report", "reporting", "gates", "config", "baseline", "sidefiles", "card",
    "decoding", "checkpoints", "findings", "possible", "verifying", "origins", "exporting", "requantizing",
    "export_report", "renderings", "cli", "__main__",
]  # fmt: skip
"""Modules and packages; each may import those that stand before it. Arithmetic comes before files, files before plans,
plans before the loop that carries them out, and what is printed comes last."""

FILES = sorted(PACKAGE.rglob("*.py"))


def parts(path: Path) -> list[str]:
    """The dotted name of a file inside the package."""
    found = list(path.relative_to(PACKAGE).with_suffix("").parts)
    return found[:-1] if found[-1] == "__init__" else found


def imported(path: Path) -> list[str]:
    """Dotted names inside the package that a file imports when it is imported itself."""
    found: list[str] = []

    def visit(body: list[ast.stmt]) -> None:
        for node in body:
            if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
                visit(node.orelse)
            elif isinstance(node, (ast.If, ast.Try)):
                visit([*node.body, *node.orelse, *getattr(node, "finalbody", [])])
                for handler in getattr(node, "handlers", []):
                    visit(handler.body)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path.name}: imports are absolute"
                if node.module == "quantcli":
                    found.extend(alias.name for alias in node.names)
                elif node.module and node.module.startswith("quantcli."):
                    stem = node.module.removeprefix("quantcli.")
                    found.extend(f"{stem}.{alias.name}" for alias in node.names)
            elif isinstance(node, ast.Import):
                found.extend(a.name.removeprefix("quantcli.") for a in node.names if a.name.startswith("quantcli."))

    visit(ast.parse(path.read_text()).body)
    return [name for name in found if not name.startswith("__version__")]


def test_every_module_has_a_place_in_the_order() -> None:
    units = {parts(path)[0] for path in FILES if parts(path)}
    assert units == set(ORDER)


@pytest.mark.parametrize("path", FILES, ids=lambda p: ".".join(parts(p)) or "quantcli")
def test_imports_point_upward(path: Path) -> None:
    own = parts(path)
    place = ORDER.index(own[0]) if own else -1
    for name in imported(path):
        unit = name.split(".")[0]
        if own and unit == own[0]:
            continue
        assert unit in ORDER, name
        assert ORDER.index(unit) < place, f"{'.'.join(own)} imports {name}"


@pytest.mark.parametrize("package", ["calibrators", "exports", "formats", "foreign", "renderings"])
def test_variants_do_not_import_one_another(package: str) -> None:
    variants = {p.stem for p in (PACKAGE / package).glob("*.py") if not p.stem.startswith("_")}
    for variant in variants:
        for name in imported(PACKAGE / package / f"{variant}.py"):
            stem = name.split(".")
            assert not (stem[0] == package and stem[1] in variants - {variant}), f"{variant} imports {name}"


def test_variants_know_no_files() -> None:
    below = ORDER.index("stores")
    for package in ("calibrators", "formats"):
        for path in (PACKAGE / package).glob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else \
                    [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                for name in names:
                    unit = name.removeprefix("quantcli.").split(".")[0]
                    assert not name.startswith("quantcli") or unit == "quantcli" or ORDER.index(unit) < below, path.name


def printed(program: str) -> str:
    """What a Python program prints in a process of its own."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment(),
                          check=True)
    return done.stdout.strip()


def test_importing_the_command_line_imports_nothing_heavy() -> None:
    """`quantcli --help` must not wait for numpy."""
    modules = ["quantcli", "quantcli.cli", *(f"quantcli.cli.{p.stem}" for p in (PACKAGE / "cli").glob("*.py")
                                             if p.stem != "__init__")]
    program = "import importlib, sys\n" \
              f"for name in {modules!r}: importlib.import_module(name)\n" \
              "print(sorted({'numpy', 'rich', 'safetensors', 'xxhash', 'yaml', 'ml_dtypes'} & set(sys.modules)))"
    assert printed(program) == "[]"


def test_help_imports_nothing_heavy() -> None:
    """The same for the help of a command, which lists the variants that exist."""
    program = "import sys\nfrom quantcli.cli import main\n" \
              "try: main(['quantize', '--help'])\n" \
              "except SystemExit: pass\n" \
              "print('LOADED', sorted({'numpy', 'rich', 'safetensors', 'xxhash', 'yaml'} & set(sys.modules)))"
    assert printed(program).endswith("LOADED []")


def test_help_reads_no_facts_about_models() -> None:
    """Nor for what only reads files: each module costs a millisecond or more."""
    program = "import sys\nbefore = set(sys.modules)\nfrom quantcli.cli import main\n" \
              "try: main(['quantize', '--help'])\n" \
              "except SystemExit: pass\n" \
              "print('LOADED', sorted({'json', 'pathlib', 'urllib'} & (set(sys.modules) - before)))"
    assert printed(program).endswith("LOADED []")


def test_large_headers_are_not_searched_for_garbage(tmp_path: Path) -> None:
    """Garbage collections took a third of the time of a run on 20,000 tensors, and found nothing."""
    path = save(tmp_path / "many.safetensors", {f"layers.{i}.weight": np.ones((1, 4), np.float32) for i in range(4000)})
    program = "import gc, sys\nfrom quantcli.__main__ import main\n" \
              f"sys.argv = ['quantcli', 'inspect', {str(path)!r}]\n" \
              "try: main()\n" \
              "except SystemExit: pass\n" \
              "print('COLLECTIONS', sum(s['collections'] for s in gc.get_stats()))"
    assert int(printed(program).split()[-1]) < 60


def test_the_public_names_are_there() -> None:
    for name in quantcli.__all__:
        assert getattr(quantcli, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = quantcli.nothing


def test_every_variant_provides_itself() -> None:
    from quantcli import registry

    for package in ("calibrators", "exports", "formats", "foreign", "renderings", "cli"):
        for name in registry.names(package):
            module = importlib.import_module(f"quantcli.{package}.{name.replace('-', '_')}")
            if not (package == "cli" and name == "options"):
                assert registry.get(package, name) is module.PROVIDES
        with pytest.raises(KeyError):
            registry.get(package, "no-such-variant")
    assert list(registry.names("calibrators")) == sorted(registry.names("calibrators"))
