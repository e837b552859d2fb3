"""What is mutated, how much of it, and the tests that should notice: for each file its own, the fastest first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

_CODES = ["tests/test_api.py", "tests/tensors/test_rows.py", "tests/kernels/test_one_call.py"]
_FILES = ["tests/stores/test_headers.py", "tests/stores/test_written.py", "tests/stores/test_stores.py"]
_NATIVE = [
    "tests/layouts/test_native.py",
    "tests/test_frozen.py",
    "tests/test_damaged.py",
    "tests/passes/test_verify.py",
]
_LAYOUTS = ["tests/layouts/test_pieces.py", "tests/layouts/test_layouts.py", "tests/layouts/test_read.py"]
_EXPORTS = ["tests/layouts/test_pieces.py", "tests/layouts/test_joined.py", "tests/layouts/test_exports.py"]
_BUDGETS = [
    f"tests/planning/test_budgets.py::{name}"
    for name in (
        "test_a_target_out_of_reach_is_refused_before_weights_are_read",
        "test_other_targets",
        "test_one_scheme_for_all",
        "test_no_choice_is_better",
    )
]

AREAS: Mapping[str, Mapping[str, Sequence[str]]] = {
    "packing": {"quantcli/tensors/packing.py": ["tests/tensors/test_packing.py"]},
    "grouping": {"quantcli/tensors/rows.py": ["tests/tensors/test_rows.py", "tests/tensors/test_grouping.py"]},
    "codes": {f"quantcli/tensors/{name}.py": _CODES for name in ("api", "fit")},
    "settle": {"quantcli/tensors/settle.py": ["tests/tensors/test_settle.py"]},
    "metrics": {"quantcli/metrics.py": ["tests/test_metrics.py"]},
    "container": {
        f"quantcli/layouts/native/{name}.py": _NATIVE
        for name in ("document", "held", "model", "parts", "stored", "write")
    },
    "safetensors": {f"quantcli/stores/{name}.py": _FILES for name in ("safetensors", "safetensors_check")},
    "allocation": {
        "quantcli/planning/allocate.py": ["tests/planning/test_allocating.py"],
        "quantcli/passes/budget.py": _BUDGETS,
    },
    "gates": {"quantcli/reports/gates.py": ["tests/reports/test_judge.py"]},
    "layouts": {
        "quantcli/layouts/pieces.py": _EXPORTS,
        "quantcli/layouts/awq.py": _EXPORTS,
        "quantcli/layouts/gptq.py": [*_EXPORTS, "tests/layouts/test_read.py"],
        "quantcli/layouts/groups.py": _LAYOUTS,
    },
}  # fmt: skip

SAMPLE = {
    "packing": 25, "grouping": 70, "codes": 65, "settle": 70, "metrics": 60, "container": 70, "safetensors": 60,
    "allocation": 60, "gates": 60, "layouts": 60,
}  # fmt: skip
"""Mutants of each area: 600 together; packing has no more."""
