"""The order of the packages, and what starting the command costs."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from making import ROOT, environment, save

import quantcli
from quantcli import registry

PACKAGE = Path(quantcli.__file__).parent

ORDER = [
    "errors", "each", "notebook", "interrupts", "waiting", "dtypes", "registry", "strict", "patterns", "terminal",
    "library", "memory", "front", "kernels", "metrics", "scheme", "formats", "scales", "calibrators", "deciding",
    "asking", "tensors", "theory", "stores", "architectures", "layouts", "experts", "models", "naming", "folding",
    "floats", "matching", "moving_records", "moving_fp4", "moving", "planning", "passes", "dasked", "reports",
    "folders", "api", "cli", "__main__",
]  # fmt: skip
"""Packages and the modules beside them; each may import those that stand before it. Arithmetic comes before files,
files before plans, plans before the passes that carry them out, and what is printed comes last."""

FILES = sorted(PACKAGE.rglob("*.py"))

VARIANTS = ("calibrators", "formats", "reports.renderings")
"""Packages that hold a variant in each module."""

LAYOUTS = {name.replace("-", "_") for offer in ("READS", "WRITES") for name in registry.names("layouts", offer)}
"""Modules and packages of `layouts` that hold the layout of a tool."""


def parts(path: Path) -> list[str]:
    """The dotted name of a file inside the package."""
    found = list(path.relative_to(PACKAGE).with_suffix("").parts)
    return found[:-1] if found[-1] == "__init__" else found


def imported(path: Path) -> list[str]:
    """Dotted names inside the package that a file imports: when it is imported itself, inside its functions, or by
    the name of a package of variants."""
    found: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: imports are absolute"
            if node.module == "quantcli":
                found.extend(alias.name for alias in node.names)
            elif node.module and node.module.startswith("quantcli."):
                stem = node.module.removeprefix("quantcli.")
                found.extend(f"{stem}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            found.extend(a.name.removeprefix("quantcli.") for a in node.names if a.name.startswith("quantcli."))
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and ast.unparse(node.func) in ("registry.get", "registry.names")
        ):
            package = node.args[0]
            assert isinstance(package, ast.Constant) and isinstance(package.value, str), path.name
            found.append(package.value)
    return [name for name in found if name != "__version__"]


def modules_of(name: str) -> str:
    """The module that an imported name is, or is in."""
    steps = name.split(".")
    while steps and not ((PACKAGE.joinpath(*steps)).is_dir() or PACKAGE.joinpath(*steps).with_suffix(".py").is_file()):
        steps.pop()
    return ".".join(steps)


def test_every_package_has_a_place_in_the_order() -> None:
    units = {parts(path)[0] for path in FILES if parts(path)}
    assert units == set(ORDER)


@pytest.mark.parametrize("path", FILES, ids=lambda p: ".".join(parts(p)) or "quantcli")
def test_imports_point_upward(path: Path) -> None:
    own = parts(path)
    if not own:  # the public names are imported on first use
        return
    for name in imported(path):
        unit = name.split(".")[0]
        if unit == own[0]:
            continue
        assert unit in ORDER, name
        assert ORDER.index(unit) < ORDER.index(own[0]), f"{'.'.join(own)} imports {name}"


def test_no_module_imports_itself_by_way_of_others() -> None:
    arrows = {".".join(parts(path)): {modules_of(name) for name in imported(path)} for path in FILES if parts(path)}
    done: set[str] = set()

    def follow(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " -> ".join([*way[way.index(module) :], module])
        if module in done:
            return
        for other in sorted(arrows.get(module, set()) - {module}):
            follow(other, (*way, module))
        done.add(module)

    for module in arrows:
        follow(module, ())


@pytest.mark.parametrize("path", FILES, ids=lambda p: ".".join(parts(p)) or "quantcli")
def test_no_module_imports_the_underscore_names_of_another(path: Path) -> None:
    package = ".".join(parts(path) if path.name == "__init__.py" else parts(path)[:-1])
    for name in imported(path):
        stem, _, last = name.rpartition(".")
        hidden = [step for step in name.split(".") if step.startswith("_")]
        shared = modules_of(name) == name and stem == package  # a helper module inside the package
        within = hidden and not last.startswith("_") and stem.rpartition(".")[0] == package
        assert not hidden or shared or within, f"{'.'.join(parts(path))} imports {name}"


@pytest.mark.parametrize("package", (*VARIANTS, "layouts"))
def test_variants_do_not_import_one_another(package: str) -> None:
    folder = PACKAGE.joinpath(*package.split("."))
    variants = LAYOUTS if package == "layouts" else {p.stem for p in folder.glob("*.py") if not p.stem.startswith("_")}
    for path in folder.rglob("*.py"):
        own = path.relative_to(folder).with_suffix("").parts[0]
        if own not in variants and package != "layouts":  # what all layouts share knows none of them either
            continue
        for name in imported(path):
            for other in variants - {own}:
                assert not f"{name}.".startswith(f"{package}.{other}."), f"{own} imports {name}"


def test_calibrators_and_formats_know_no_files() -> None:
    below = ORDER.index("stores")
    for package in ("calibrators", "formats"):
        for path in (PACKAGE / package).rglob("*.py"):
            for name in imported(path):
                assert ORDER.index(name.split(".")[0]) < below, path.name


def printed(program: str) -> str:
    """What a Python program prints in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment(), check=True
    )
    return done.stdout.strip()


def test_importing_the_command_line_imports_nothing_heavy() -> None:
    """`quantcli --help` must not wait for numpy."""
    modules = [
        "quantcli",
        "quantcli.cli",
        *(f"quantcli.cli.{p.stem}" for p in (PACKAGE / "cli").glob("*.py") if p.stem != "__init__"),
    ]
    program = (
        "import importlib, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "print(sorted({'numpy', 'rich', 'safetensors', 'xxhash', 'yaml', 'ml_dtypes'} & set(sys.modules)))"
    )
    assert printed(program) == "[]"


@pytest.mark.parametrize("words", [["--version"], ["quantize", "--help"]], ids=" ".join)
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    """The same for the version, which names the kernels, and the help of a command, which lists variants."""
    program = (
        "import sys\nfrom quantcli.cli import main\n"
        f"try: main({words!r})\n"
        "except SystemExit: pass\n"
        "print('LOADED', sorted({'numpy', 'rich', 'safetensors', 'xxhash', 'yaml'} & set(sys.modules)))"
    )
    assert printed(program).endswith("LOADED []")


def test_help_reads_no_facts_about_models() -> None:
    """Nor for what only reads files: each module costs a millisecond or more."""
    program = (
        "import sys\nbefore = set(sys.modules)\nfrom quantcli.cli import main\n"
        "try: main(['quantize', '--help'])\n"
        "except SystemExit: pass\n"
        "print('LOADED', sorted({'json', 'pathlib', 'urllib'} & (set(sys.modules) - before)))"
    )
    assert printed(program).endswith("LOADED []")


def test_large_headers_are_not_searched_for_garbage(tmp_path: Path) -> None:
    """Garbage collections took a third of the time of a run on 20,000 tensors, and found nothing."""
    path = save(tmp_path / "many.safetensors", {f"layers.{i}.weight": np.ones((1, 4), np.float32) for i in range(4000)})
    program = (
        "import gc, sys\nfrom quantcli.__main__ import main\n"
        f"sys.argv = ['quantcli', 'inspect', {str(path)!r}]\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print('COLLECTIONS', sum(s['collections'] for s in gc.get_stats()))"
    )
    assert int(printed(program).split()[-1]) < 60


def test_the_public_names_are_there() -> None:
    for name in quantcli.__all__:
        assert getattr(quantcli, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = quantcli.nothing


def test_every_variant_provides_itself() -> None:
    for package in (*VARIANTS, "cli"):
        for name in registry.names(package):
            module = importlib.import_module(f"quantcli.{package}.{name.replace('-', '_')}")
            if not (package == "cli" and name == "options"):
                assert registry.get(package, name) is module.PROVIDES
        with pytest.raises(KeyError):
            registry.get(package, "no-such-variant")
    assert list(registry.names("calibrators")) == sorted(registry.names("calibrators"))


def test_every_layout_offers_what_its_text_says() -> None:
    for offer in ("READS", "WRITES"):
        for name in registry.names("layouts", offer):
            module = importlib.import_module(f"quantcli.layouts.{name.replace('-', '_')}")
            assert registry.get("layouts", name, offer) is getattr(module, offer)
    with pytest.raises(KeyError):
        registry.get("layouts", "hqq", "WRITES")
    assert {"reader", "writer", "config", "evidence"}.isdisjoint(LAYOUTS)


def test_tests_lie_as_the_packages_do_and_import_no_other_test() -> None:
    """So that each can be moved, split or run alone: what several need stands in modules beside them."""
    tests = ROOT / "tests"
    others = {"golden", "peers", "bench", "variants", "fuzz", "mutation"}
    for path in sorted(tests.rglob("*.py")):
        place, *within = path.relative_to(tests).parts
        assert not within or place in others or (PACKAGE / place).is_dir(), f"{place} is no package of quantcli"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.split(".")[-1].startswith("test_") for name in names), f"{path.name} imports a test"
