"""Patterns for names: globs, regular expressions, near misses, and expressions that would never end."""

from __future__ import annotations

import subprocess
import sys

import pytest
from making import environment

from quantcli import UsageError
from quantcli.patterns import compiled, matching, module_of, near_misses

NAMES = [
    "model.layers.0.mlp.down_proj.weight", "model.layers.0.mlp.up_proj.weight", "model.layers.10.mlp.down_proj.weight",
    "model.layers.0.self_attn.q_proj.bias", "lm_head.weight", "weird[0].weight", "Model.Layers.weight",
]  # fmt: skip


@pytest.mark.parametrize(("pattern", "expected"), [
    ("lm_head.weight", ["lm_head.weight"]),
    ("lm_head", ["lm_head.weight"]),
    ("*.down_proj", [NAMES[0], NAMES[2]]),
    ("*down_proj*", [NAMES[0], NAMES[2]]),
    ("model.layers.0.*", [NAMES[0], NAMES[1], NAMES[3]]),
    ("model.layers.?.mlp.*", [NAMES[0], NAMES[1]]),
    ("model.layers.[1-9]*", [NAMES[2]]),
    ("*", NAMES),
    ("**", NAMES),
    ("weird[[]0]", ["weird[0].weight"]),
    (r"re:.*layers\.\d\..*", [NAMES[0], NAMES[1], NAMES[3]]),
    (r"re:lm_head", ["lm_head.weight"]),
    (r"re:(lm_head|model\.layers\.10)\..*", [NAMES[2], NAMES[4]]),
    ("re:(?i)model.layers", ["Model.Layers.weight"]),
])  # fmt: skip
def test_what_matches(pattern: str, expected: list[str]) -> None:
    assert matching([pattern], NAMES, "--include") == set(expected)


def test_patterns_add_up() -> None:
    assert matching(["lm_head", "*.up_proj"], NAMES, "--include") == {NAMES[4], NAMES[1]}
    assert matching([], NAMES, "--include") == set()


@pytest.mark.parametrize(
    "pattern",
    ["lm_heat", "layers", "model.layers.0", "LM_HEAD.weight", "re:layers", "re:", "*.down-proj", "weird[0].weight"],
)
def test_a_pattern_that_matches_nothing_is_an_error(pattern: str) -> None:
    """a pattern that matches nothing is an error that lists near misses"""
    with pytest.raises(UsageError) as caught:
        matching(["*", pattern], NAMES, "--include")
    assert str(caught.value).startswith("--include: ")
    assert "matches no tensor" in str(caught.value)
    assert "near it: " in str(caught.value)


def test_near_misses_are_near() -> None:
    assert "lm_head" in near_misses("lm_haed", NAMES)
    assert "down_proj" in near_misses("*.down_prj.weight", NAMES)
    assert near_misses("zzz", NAMES).startswith("near it: ")
    assert near_misses("x", []) is not None


def test_near_misses_do_not_print_what_names_hide() -> None:
    hint = near_misses("evil", ["evil\x1b[2J\nquantcli: done"])
    assert "\x1b" not in hint and "\n" not in hint


@pytest.mark.parametrize("pattern", ["", "x" * 401, "re:" + "a" * 400, "re:(", "re:[", "re:*", "re:(?P<x>a)(?P<x>b)",
                                     "re:a{2,1}", "re:(?<=a+)b", "re:\\"])  # fmt: skip
def test_patterns_that_are_none(pattern: str) -> None:
    with pytest.raises(UsageError) as caught:
        compiled(pattern, "--exclude")
    assert str(caught.value).startswith("--exclude: ")
    assert "\n" not in str(caught.value)


ENDLESS = [
    r"(a+)+$", r"(a*)*b", r"(a|aa)+$", r"(a|a)*b", r"(.*)*x", r"(\w+\.?)+x", r"([a-z]+)*\d", r"(a+){10,}b",
    r"((a+))+$", r"(?:(?:a+))+$", r"((a|aa))+$", r"(?:a?){40}a{40}", r"(a?a?)+$", r"(a{1,30}){1,30}b", r"(x+x+)+y",
    r"(?=(a+)+b)a", r".*.*.*.*.*.*x", r"a*a*a*a*a*a*b", r"\w*\w*\w*\w*\w*\w*\d",
]  # fmt: skip
"""Expressions that take exponential (or a high polynomial) time on names of one repeated letter."""

_TRY = """
import sys
from quantcli import UsageError
from quantcli.patterns import compiled
try:
    test = compiled("re:" + sys.argv[1], "--include")
except UsageError as error:
    assert "\\n" not in str(error)
else:
    for name in ("a" * 60, "x" * 60, "layers." * 8 + "weight!", "a" * 200 + "!"):
        test(name)
"""


@pytest.mark.parametrize("pattern", ENDLESS)
def test_expressions_are_refused_or_fast(pattern: str) -> None:
    """on some names such expressions take longer than the age of the universe"""
    try:
        compiled(f"re:{pattern}", "--include")
    except UsageError as error:
        assert "use a simpler expression" in str(error)
        return
    try:
        subprocess.run([sys.executable, "-c", _TRY, pattern], env=environment(), timeout=5, check=True)
    except subprocess.TimeoutExpired:
        pytest.fail(f"{pattern} is accepted and does not end")


def test_globs_are_fast_on_hostile_names() -> None:
    test = compiled("*a" * 100 + "b", "--include")
    assert not test("a" * 1024)


def test_the_module_of_a_name() -> None:
    assert module_of("a.b.weight") == "a.b"
    assert module_of("weight") == ""
    assert module_of("") == ""
