"""The web page of reports: well-formed, self-contained, deterministic, and nothing in a name is ever markup."""

from __future__ import annotations

import base64
import hashlib
import io
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import browser
import pytest

from quantcli.errors import printable
from quantcli.passes.examine import Histogram
from quantcli.reports.documents import Display
from quantcli.reports.page import NAME
from quantcli.reports.records import Change, Comparison, GateFailure, GateResult, Summary, TensorReport
from quantcli.reports.renderings.html import PROVIDES
from quantcli.reports.run import RunReport, RunReports
from quantcli.theory.bounds import Theory

VOID = {"meta", "wbr", "br", "input", "link", "img", "hr"}

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    "it's \"quoted\" & 'so'",
    "</title></svg></style></script><svg onload=alert(3)>",
    "שלום.עולם.weight 12",
    "a\u202egnp.exe\x1b[2J\n</table>",
    "javascript:alert(4) http://example.org/ url(x) src=y",
    "&lt;b&gt;&#x3c;",
    "-->]]><!--",
    "half \ud800",
    "x" * 3000,
    "",
]


# ---- reports ----------------------------------------------------------------------------------------------------


THEORY = Theory(
    measured_sqnr_db=20.0, predicted_sqnr_db=20.1, rounding_sse=1.0, clipping_sse=0.25, clipping_share=0.2,
    uniform_sqnr_db=19.2, lloyd_max_sqnr_db=20.2, gaussian_uniform_sqnr_db=None, gaussian_lloyd_max_sqnr_db=20.22,
    rate=4.25, rate_distortion_db=25.6, entropy_coded_db=24.1, shannon_db=None, gaps_db={}, code_entropy=3.67,
    saving_bytes=170,
)  # fmt: skip

QUANTIZED = TensorReport(
    name="", dtype="BF16", shape=[64, 32], disposition="quantized", reason="default", note="", bits=4, format="int",
    granularity="group", group_size=64, axis=None, symmetric=True, calibration="mse", rounding="nearest",
    scale_dtype="F16", scheme="w4g64", mse=1e-4, nmse=1e-2, sqnr_db=20.0, exact=False, max_abs_error=0.05,
    clipped_fraction=0.01, minmax_sqnr_db=None, bits_per_weight=4.25, bytes_in=4096, bytes_out=1100, digest=None,
)  # fmt: skip

KEPT = replace(
    QUANTIZED, disposition="kept", shape=[64], bits=None, format=None, granularity=None, group_size=None,
    symmetric=None, calibration=None, rounding=None, scale_dtype=None, scheme=None, mse=None, nmse=None, sqnr_db=None,
    exact=True, max_abs_error=None, clipped_fraction=None, bits_per_weight=16.0,
)  # fmt: skip


def change(name: str, before: float | None, after: float | None, was: str, now: str) -> Change:
    delta = None if before is None or after is None else after - before
    return Change(tensor=name, before_db=before, before_exact=before is None, after_db=after, after_exact=after is None,
                  delta_db=delta, before=was, after=now)  # fmt: skip


def histogram(bits: int = 4) -> Histogram:
    half = 2 ** (bits - 1)
    counts = [int(900 * math.exp(-(((i - 32) / 12) ** 2))) for i in range(64)]
    return Histogram(low=-half - 1.0, high=float(half), counts=counts, levels=[float(v) for v in range(-half, half)])


def tensor(name: str, db: float | None = 20.0, bits: int = 4, **changes: Any) -> TensorReport:
    base = replace(QUANTIZED, name=name, sqnr_db=db, bits=bits, scheme=f"w{bits}g64", bits_per_weight=bits + 0.25)
    return replace(base, **changes)


def kept(name: str, reason: str = "norm") -> TensorReport:
    return replace(KEPT, name=name, reason=reason)


def report(tensors: list[TensorReport], **changes: Any) -> RunReport:
    quantized = [t for t in tensors if t.disposition == "quantized"]
    known = [t.sqnr_db for t in quantized if t.sqnr_db is not None]
    reasons = [t.reason for t in tensors if t.disposition == "kept"]
    summary = Summary(
        parameters=115008, tensors=len(tensors), quantized=len(quantized),
        kept={r: reasons.count(r) for r in dict.fromkeys(reasons)}, coverage=0.85, bits_per_weight=4.5, mse=1e-4,
        nmse=1e-2, sqnr_db=min(known, default=None), exact=False, max_abs_error=0.06, clipped_fraction=0.01,
        bytes_in=232368, bytes_out=96960, ratio=2.4, seconds=0.1,
    )  # fmt: skip
    found = RunReport(command="report", source="in", output="out.safetensors", summary=summary, tensors=tensors)
    return replace(found, **changes)


def gate(passed: bool, failures: list[GateFailure] | None = None) -> GateResult:
    name = "min_tensor_sqnr" if failures else "min_sqnr"
    return GateResult(gate=name, limit=20.0, value=19.5, passed=passed, message="19.50 dB", failures=failures or [])


def usual() -> RunReport:
    """Two layers, a few bit widths, exact, unmeasured and kept tensors, failed gates, warnings and a baseline."""
    names = [f"model.layers.{i // 4}.mlp.{p}_proj.weight" for i, p in enumerate(["up", "gate", "down", "o"] * 2)]
    tensors = [
        tensor(n, 12.0 + 2.5 * b, b, theory=replace(THEORY, clipping_share=b / 20), histogram=histogram(b),
               bytes_out=10**b)
        for n, b in zip(names, [4, 8, 3, 2, 4, 5, 6, 1])
    ]  # fmt: skip
    tensors += [
        tensor("exact.weight", None, 8, exact=True), tensor("unmeasured.weight", None), kept("model.norm.weight"),
    ]  # fmt: skip
    failure = GateFailure(tensor=names[3], value=17.0, limit=20.0, message="17.00 dB, limit 20.00 dB")
    changes = [
        change(names[0], 23.0, 22.0, "w4g32", "w4g64"),
        change(names[1], 30.0, 32.0, "w8c", "w8g64"),
        change(names[2], None, 19.5, "kept: norm", "w3g64"),
    ]
    return report(
        tensors,
        passed=False,
        gates=[gate(False, [failure]), gate(True)],
        warnings=["something is doubtful"],
        comparison=Comparison(baseline="base.json", changes=changes, new=["new.weight"], vanished=["old.weight"]),
    )


def hostile() -> RunReport:
    tensors = [
        tensor(n, 20.0 + i, scheme=n, note=n, theory=THEORY, histogram=histogram()) for i, n in enumerate(HOSTILE)
    ]
    failures = [GateFailure(tensor=n, value=1.0, limit=20.0, message=n) for n in HOSTILE]
    changes = [change(n, 1, 2, n, n) for n in HOSTILE]
    return report(
        [*tensors, *(kept(n + " kept", n) for n in HOSTILE)],
        source=HOSTILE[0], output=HOSTILE[3], passed=False, warnings=HOSTILE,
        gates=[replace(gate(False, failures), value=None, message=HOSTILE[1])],
        comparison=Comparison(baseline=HOSTILE[1], changes=changes, new=HOSTILE, vanished=HOSTILE),
    )  # fmt: skip


def many() -> RunReport:
    parts = [f"self_attn.{p}_proj" for p in "qkvo"] + [f"mlp.experts.shared.{p}_proj" for p in ("gate", "up", "down")]
    tensors = [
        tensor(f"model.language_model.layers.{i // 7}.{parts[i % 7]}.weight", 10 + i % 37 / 3, 2 + i % 7,
               theory=THEORY, histogram=histogram(2 + i % 7))
        for i in range(2000)
    ]  # fmt: skip
    return report(tensors, passed=True, gates=[gate(True)])


CASES: dict[str, list[RunReport]] = {
    "no report": [],
    "usual": [usual()],
    "passed": [replace(usual(), passed=True, gates=[gate(True)])],
    "several": [usual(), replace(usual(), passed=None, gates=[], output=None), report([kept("a")])],
    "no tensors": [report([])],
    "nothing quantized": [report([kept("model.norm.weight"), kept("lm_head.weight", "lm-head")])],
    "nothing measured": [report([tensor("a", None), tensor("b", None)])],
    "all exact": [report([tensor("a", None, exact=True), tensor("b", None, 8, exact=True)])],
    "one tensor": [report([tensor("a")])],
    "scalar and empty": [report([tensor("a", shape=[]), tensor("b", shape=[0, 4], bits_per_weight=0.0)])],
    "extreme figures": [report([tensor("a", -412.7), tensor("b", 3e5, bits_per_weight=1e9), tensor("c", 1e-9)])],
    "odd histograms": [
        report([
            tensor("a", histogram=Histogram(low=0.0, high=0.0, counts=[5], levels=[0.0])),
            tensor("b", histogram=Histogram(low=0.0, high=1.0, counts=[], levels=[])),
            tensor("c", histogram=Histogram(low=0.0, high=1.0, counts=[0, 0], levels=[0.5])),
            tensor("d", histogram=histogram(8)),
        ])
    ],
    "hostile names": [hostile()],
}  # fmt: skip


def page(reports: list[RunReport]) -> str:
    stream = io.StringIO()
    PROVIDES.render(RunReports(reports), stream, Display())
    return stream.getvalue()


# ---- the markup ---------------------------------------------------------------------------------------------------


class Document(HTMLParser):
    """All elements, attributes and text of a page; raises where a tag is not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.comments = 0
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), attrs
        self.tags.append((tag, dict(attrs)))
        if tag in {"th", "bdi", "title", "td", "li"}:
            self.texts.setdefault(tag, []).append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert "svg" in self.open
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        for tag in {"th", "bdi", "title", "td", "li"} & set(self.open):
            self.texts[tag][-1] += data

    def handle_comment(self, data: str) -> None:
        self.comments += 1

    def all(self, tag: str, kind: str | None = None) -> list[dict[str, str | None]]:
        return [a for name, a in self.tags if name == tag and (kind is None or kind in (a.get("class") or "").split())]


@pytest.mark.parametrize("case", CASES)
def test_pages_are_balanced_and_deterministic(case: str) -> None:
    text = page(CASES[case])
    assert text.startswith("<!DOCTYPE html>\n") and text.endswith("</html>\n")
    text.encode("utf-8")
    document = Document(text)
    assert document.comments == 0
    assert page(CASES[case]) == text
    assert not re.search(r"[\"=> ](nan|-?inf)(%|\"|<)", text)
    for name, value in (pair for _, attrs in document.tags for pair in attrs.items()):
        assert not name.startswith("on") and name not in {"src", "style", "action", "srcset", "data"}, (name, value)
    ids = [a["id"] for _, a in document.tags if "id" in a]
    assert len(set(ids)) == len(ids)
    assert {(a["href"] or "")[1:] for _, a in document.tags if "href" in a} <= set(ids)


@pytest.mark.parametrize("case", [c for c in CASES if c != "hostile names"])
def test_pages_need_nothing_but_themselves(case: str) -> None:
    text = page(CASES[case])
    assert not re.search(r"https?:|//[a-z]|src=|@import|xlink|javascript:", text)
    assert set(re.findall(r"url\(([^)]*)", text)) <= {"#hatch"}
    tags = {tag for tag, _ in Document(text).tags}
    assert not tags & {"link", "img", "iframe", "object", "embed", "base", "form", "image", "foreignobject"}


def test_the_policy_allows_the_pages_own_script_alone() -> None:
    text = page(CASES["usual"])
    metas = Document(text).all("meta")
    policy = next(a["content"] or "" for a in metas if a.get("http-equiv") == "Content-Security-Policy")
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'")
    assert f"'sha256-{digest}'" in policy
    assert text.index("Content-Security-Policy") < text.index("<style>")


@pytest.mark.parametrize("case", CASES)
def test_every_tensor_is_in_the_table(case: str) -> None:
    names = Document(page(CASES[case])).texts.get("bdi", [])
    for one in CASES[case]:
        assert {printable(t.name, NAME) for t in one.tensors} <= set(names)


def test_hostile_names_stay_text() -> None:
    text = page(CASES["hostile names"])
    document = Document(text)
    harmless = Document(page([usual()]))
    assert {tag for tag, _ in document.tags} <= {tag for tag, _ in harmless.tags}
    assert len(document.all("script")) == 1 and len(document.all("style")) == 1
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert script in page([])
    for name in HOSTILE:
        assert any(title.startswith(printable(name, NAME) + "\n") for title in document.texts["title"])
    assert "\u202e" not in text and "\x1b" not in text
    assert len(max(document.texts["bdi"], key=len)) <= NAME + 50


# ---- what the page tells ------------------------------------------------------------------------------------------


def test_the_verdict_comes_first() -> None:
    failed, passed, none = (page(CASES[c]) for c in ("usual", "passed", "one tensor"))
    assert failed.index("1 of 2 gates failed") < failed.index("<h1") and 'class="verdict failed"' in failed
    assert "<strong>The gate was passed</strong>" in passed and 'class="verdict failed"' not in passed
    assert 'class="verdict' not in none


def test_several_reports_have_an_index() -> None:
    document = Document(page(CASES["several"]))
    assert [a["href"] for a in document.all("a")] == ["#r1", "#r2", "#r3"]
    assert [a["id"] for a in document.all("section", "report")] == ["r1", "r2", "r3"]
    assert Document(page(CASES["usual"])).all("a") == []


def test_charts_have_a_mark_per_measured_tensor() -> None:
    text = page(CASES["usual"])
    assert len(re.findall(r"<title>[^<]*\n[^<]*</title></use>", text)) == 2 * 9
    assert {f"#m{b}" for b in (1, 2, 3, 4, 5, 6, 8)} == set(re.findall(r'<use href="(#m\d)"', text))
    assert "1 tensor without a measured SQNR left out" in text and ">exact</text>" in text
    assert len(re.findall(r'<line class="model"[^>]*x1="0%"', text)) == 1
    assert "there is nothing to draw" in page(CASES["nothing quantized"])
    for case in CASES:
        for x, y in re.findall(r'<use href="[^"]*" x="([^"]*)%" y="([^"]*)%"', page(CASES[case])):
            assert 0 <= float(x) <= 100 and 0 <= float(y) <= 100


def test_rows_come_worst_first_and_kept_ones_last() -> None:
    table = page(CASES["usual"]).split('aria-label="tensors"')[1].split("</table>")[0]
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in table.split("<tr")[2:]]
    sqnr = [row[3] for row in cells]
    assert sqnr == ["14.50", "17.00", "19.50", "22.00", "22.00", "24.50", "27.00", "32.00", "exact", "–", "–"]
    assert cells[-1][2] == "kept: norm" and table.count('class="kept"') == 1
    assert table.count("✗ min-tensor-sqnr") == 1


def test_theory_and_histograms() -> None:
    text = page(CASES["usual"])
    assert len(re.findall(r'<svg class="bar"', text)) == 8
    assert '<rect width="20%"/>' in text
    assert text.count('<svg class="histogram"') == 8
    plain = page(CASES["one tensor"])
    assert "Beside theory" not in plain and "Weights on their grid" not in plain
    assert page(CASES["odd histograms"]).count("nothing to draw") == 3


def test_two_thousand_tensors_make_a_small_page() -> None:
    text = page([many()])
    assert len(text.encode()) < 3_000_000
    assert text.count('<svg class="histogram"') == 200
    assert "Only the 200 worst of 2,000 tensors are drawn" in text
    Document(text)


def _luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(one: str, other: str) -> float:
    high, low = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_colours_can_be_read(scheme: int) -> None:
    blocks = re.findall(r":root \{(.*?)\}", page([]), re.DOTALL)
    c = dict(re.findall(r"--([\w-]+): (#\w{6});", blocks[scheme]))
    for text in ("text", "muted", "accent", "good", "bad"):
        for back in ("page", "surface", "faint"):
            assert _contrast(c[text], c[back]) >= 4.5, (text, back)
    pairs = [("good", "good-back"), ("bad", "bad-back"), ("warn", "warn-back"), ("text", "warn-back"),
             ("accent", "warn-back"), ("page", "text")]  # fmt: skip
    assert all(_contrast(c[a], c[b]) >= 4.5 for a, b in pairs)
    assert all(_contrast(c[f"b{bits}"], c["surface"]) >= 3 for bits in range(9))


# ---- in a browser -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Browser]:
    if browser.executable() is None:
        pytest.skip("no Chromium")
    with browser.opened(tmp_path_factory.mktemp("profile")) as found:
        yield found


def _open(tab: browser.Browser, path: Path, reports: list[RunReport], width: int = 1280) -> None:
    path.write_text(page(reports), encoding="utf-8")
    tab.complaints.clear()
    tab.call("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 600)
    tab.open(path)


COLUMN = """
[...document.querySelector('[aria-label=tensors] tbody').rows]
    .filter(row => !row.hidden).map(row => row.cells[%d].textContent)
"""
BUTTON = "[...document.querySelectorAll('[aria-label=tensors] thead button')][%d]"


def _key(tab: browser.Browser, key: str, code: int, text: str = "") -> None:
    for kind in ("keyDown", "keyUp"):
        tab.call("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, text=text)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("width", [320, 1280])
def test_no_complaints_and_no_sideways_scrolling(case: str, width: int, tab: browser.Browser, tmp_path: Path) -> None:
    _open(tab, tmp_path / "r.html", CASES[case], width)
    assert tab.run("document.documentElement.scrollWidth <= innerWidth")
    assert tab.complaints == []


def test_tables_sort(tab: browser.Browser, tmp_path: Path) -> None:
    _open(tab, tmp_path / "r.html", CASES["usual"])
    sizes = ["10 B", "100 B", "1.00 kB", "1.10 kB", "1.10 kB", "1.10 kB", "10.0 kB", "10.0 kB", "100.0 kB", "1.00 MB",
             "100.0 MB"]  # fmt: skip
    tab.run(f"{BUTTON % 8}.click()")
    assert tab.run(COLUMN % 8) == sizes
    tab.run(f"{BUTTON % 8}.focus()")
    _key(tab, "Enter", 13, "\r")
    assert tab.run(COLUMN % 8) == sizes[::-1]
    orders = "[...document.querySelectorAll('[aria-label=tensors] th[scope=col]')].map(h => h.ariaSort)"
    assert tab.run(orders) == [None] * 8 + ["descending", None]
    for expected in (["14.50", "17.00"], ["exact", "32.00"]):
        tab.run(f"{BUTTON % 4}.click()")
        assert tab.run(COLUMN % 4)[:2] == expected and tab.run(COLUMN % 4)[-2:] == ["–", "–"]
    tab.run(f"{BUTTON % 0}.click()")
    assert tab.run(COLUMN % 1) == [
        t.name + (" ✗ min-tensor-sqnr" if i == 3 else "") for i, t in enumerate(CASES["usual"][0].tensors)
    ]
    assert tab.complaints == []


def test_tables_filter(tab: browser.Browser, tmp_path: Path) -> None:
    _open(tab, tmp_path / "r.html", CASES["usual"])
    tab.run("""(() => {
        const input = document.querySelector('[aria-label=tensors]').previousElementSibling.querySelector('input');
        input.value = 'LAYERS.1 up';
        input.dispatchEvent(new Event('input'));
    })()""")
    assert tab.run(COLUMN % 1) == ["model.layers.1.mlp.up_proj.weight"]
    assert tab.run("[...document.querySelectorAll('output')].map(o => o.textContent).join('')") == "1 of 11 rows"
    assert tab.complaints == []


def test_marks_tell_what_they_are(tab: browser.Browser, tmp_path: Path) -> None:
    _open(tab, tmp_path / "r.html", CASES["hostile names"])
    tab.run("document.querySelector('.chart .room').focus({focusVisible: true})")
    _key(tab, "Home", 36)
    assert tab.run("document.querySelector('.tip.on b').textContent") == HOSTILE[0]
    _key(tab, "ArrowRight", 39)
    assert tab.run("document.querySelector('.tip.on b').textContent") == HOSTILE[1]
    _key(tab, "Escape", 27)
    assert tab.run("document.querySelectorAll('.tip.on').length") == 0
    assert tab.complaints == []


def test_two_thousand_tensors_open_and_sort_soon(tab: browser.Browser, tmp_path: Path) -> None:
    _open(tab, tmp_path / "r.html", [many()])
    spent = f"(() => {{ const t = performance.now(); {BUTTON % 1}.click(); document.body.offsetHeight;"
    assert tab.run(spent + " return performance.now() - t; })()") < 5000
    assert tab.run(COLUMN % 1)[:2] == [
        "model.language_model.layers.0.mlp.experts.shared.down_proj.weight",
        "model.language_model.layers.0.mlp.experts.shared.gate_proj.weight",
    ]
    assert tab.complaints == []
