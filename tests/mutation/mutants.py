"""Mutants of a module: its source with one small change each, which the tests of the module should notice.

A change is a text edit at the place of a syntax node, so that what a survivor looks like is a diff of a line or two.
Left alone are texts for people (docstrings, messages, f-strings), annotations, asserts, imports and decorators.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

COMPARED = {
    ast.Lt: ["<=", ">="], ast.LtE: ["<", ">"], ast.Gt: [">=", "<="], ast.GtE: [">", "<"], ast.Eq: ["!="],
    ast.NotEq: ["=="], ast.Is: ["is not"], ast.IsNot: ["is"], ast.In: ["not in"], ast.NotIn: ["in"],
}  # fmt: skip
TOKENS = {
    ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!=", ast.Is: "is",
    ast.IsNot: r"is\s+not", ast.In: "in", ast.NotIn: r"not\s+in", ast.Add: r"\+", ast.Sub: "-", ast.Mult: r"\*",
    ast.Div: "/", ast.FloorDiv: "//", ast.Mod: "%", ast.Pow: r"\*\*", ast.LShift: "<<", ast.RShift: ">>",
    ast.BitAnd: "&", ast.BitOr: r"\|", ast.BitXor: r"\^", ast.And: "and", ast.Or: "or",
}  # fmt: skip
COMPUTED = {
    ast.Add: "-", ast.Sub: "+", ast.Mult: "//", ast.Div: "*", ast.FloorDiv: "*", ast.Mod: "//", ast.Pow: "*",
    ast.LShift: ">>", ast.RShift: "<<", ast.BitAnd: "|", ast.BitOr: "&", ast.BitXor: "&",
}  # fmt: skip
CALLED = {"min": "max", "max": "min", "any": "all", "all": "any"}
NAME = re.compile(r"[\w.-]+")


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change of a file: `start` to `end` (bytes) become `new`. function: where; before, after: the lines."""

    file: str
    function: str
    start: int
    end: int
    new: str
    line: int
    before: str
    after: str
    number: int

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What stays the same when other lines of the file change."""
        return self.file, self.function, self.before, self.after

    @property
    def place_in_sample(self) -> str:
        """A random order that no other mutant has a part in."""
        return hashlib.sha256("\0".join([*self.key, str(self.number)]).encode()).hexdigest()

    def source(self, text: bytes) -> bytes:
        """The file with the change."""
        return text[: self.start] + self.new.encode() + text[self.end :]


Edit = tuple[int, int, str]


class _Edits(ast.NodeVisitor):
    """All edits of a file, with the function each is in."""

    def __init__(self, text: bytes) -> None:
        self.text = text
        self.found: list[tuple[str, Edit]] = []
        self._lines = [0]
        for line in text.splitlines(keepends=True):
            self._lines.append(self._lines[-1] + len(line))
        self._within: list[str] = []

    def _span(self, node: ast.AST) -> tuple[int, int]:
        line, end = node.lineno, node.end_lineno  # type: ignore[attr-defined]
        return self._lines[line - 1] + node.col_offset, self._lines[end - 1] + node.end_col_offset  # type: ignore[attr-defined]

    def _add(self, start: int, end: int, new: str) -> None:
        self.found.append((".".join(self._within), (start, end, new)))

    def _between(self, left: ast.AST, right: ast.AST, kind: type[ast.AST], new: str) -> None:
        """Replace the operator between two operands."""
        start, end = self._span(left)[1], self._span(right)[0]
        found = re.search(TOKENS[kind], self.text[start:end].decode())
        assert found is not None
        self._add(start + found.start(), start + found.end(), new)

    def _negate(self, test: ast.expr) -> None:
        if not isinstance(test, (ast.Compare, ast.BoolOp)) and not (
            isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not)
        ):
            start, end = self._span(test)
            self._add(start, end, f"(not ({self.text[start:end].decode()}))")

    def _body(self, node: ast.FunctionDef | ast.ClassDef | ast.Module) -> None:
        for statement in node.body:
            if not (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)):
                self.visit(statement)

    def visit_Module(self, node: ast.Module) -> None:
        self._body(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._within.append(node.name)
        self._body(node)
        self._within.pop()

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._within.append(node.name)
        for default in [*node.args.defaults, *node.args.kw_defaults]:
            if default is not None:
                self.visit(default)
        self._body(node)
        self._within.pop()

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def _skip(self, node: ast.AST) -> None:
        """Nothing in it is changed."""

    visit_Assert = visit_Raise = visit_JoinedStr = visit_Import = visit_ImportFrom = _skip  # noqa: N815

    def visit_If(self, node: ast.If) -> None:
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return
        self._negate(node.test)
        self.generic_visit(node)

    def visit_While(self, node: ast.While) -> None:
        self._negate(node.test)
        self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self._negate(node.test)
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        for test in node.ifs:
            self._negate(test)
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        operands = [node.left, *node.comparators]
        for left, op, right in zip(operands, node.ops, node.comparators):
            for new in COMPARED[type(op)]:
                self._between(left, right, type(op), new)
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        new = "or" if isinstance(node.op, ast.And) else "and"
        for left, right in zip(node.values, node.values[1:]):
            self._between(left, right, type(node.op), new)
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        if type(node.op) in COMPUTED:
            self._between(node.left, node.right, type(node.op), COMPUTED[type(node.op)])
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        if type(node.op) in COMPUTED:
            self._between(node.target, node.value, type(node.op), COMPUTED[type(node.op)])
        self.visit(node.value)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, (ast.Not, ast.USub)):
            start = self._span(node)[0]
            self._add(start, start + (1 if isinstance(node.op, ast.USub) else 4), "")
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        start, end = self._span(node)
        value = node.value
        if isinstance(value, bool):
            self._add(start, end, str(not value))
        elif isinstance(value, (int, float)):
            self._add(start, end, str(value + 1))
        elif isinstance(value, str) and NAME.fullmatch(value):
            self._add(start, end, f'"XX{value}"')

    def visit_Expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, ast.Call):
            self._add(*self._span(node), "pass")
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        if isinstance(node.func, ast.Name) and node.func.id in CALLED:
            self._add(*self._span(node.func), CALLED[node.func.id])
        elif isinstance(node.func, ast.Attribute) and node.func.attr in CALLED:
            end = self._span(node.func)[1]
            self._add(end - len(node.func.attr), end, CALLED[node.func.attr])
        self.visit(node.func)
        for argument in node.args:
            self.visit(argument)
        for keyword in node.keywords:
            if keyword.arg not in ("hint", "place"):
                self.visit(keyword.value)

    def visit_Break(self, node: ast.Break) -> None:
        self._add(*self._span(node), "continue")

    def visit_Continue(self, node: ast.Continue) -> None:
        self._add(*self._span(node), "break")


def mutants(root: Path, file: str) -> Iterator[Mutant]:
    """All mutants of a file, in the order of its text."""
    text = (root / file).read_bytes()
    edits = _Edits(text)
    edits.visit(ast.parse(text))
    seen: dict[tuple[str, str, str], int] = {}
    for function, (start, end, new) in sorted(edits.found, key=lambda f: f[1]):
        first = text.rfind(b"\n", 0, start) + 1
        last = text.find(b"\n", end)
        before = text[first:last].decode()
        after = (text[first:start] + new.encode() + text[end:last]).decode()
        key = (function, before.strip(), after.strip())
        seen[key] = number = seen.get(key, -1) + 1
        line = text.count(b"\n", 0, first) + 1
        yield Mutant(file, function, start, end, new, line, before.strip(), after.strip(), number)


def sample(root: Path, files: list[str], count: int) -> list[Mutant]:
    """A fixed sample: a change elsewhere in a file leaves it as it is, and one of a function changes little."""
    every = [mutant for file in files for mutant in mutants(root, file)]
    chosen = sorted(every, key=lambda mutant: mutant.place_in_sample)[:count]
    return sorted(chosen, key=lambda mutant: (mutant.file, mutant.start, mutant.new))
