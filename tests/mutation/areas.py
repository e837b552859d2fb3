"""What is mutated, how much of it, and the tests that should notice: for each file its own, the fastest first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

_CORE, _ALIKE = "tests/tensors/test_core.py::", "tests/layouts/test_arrays_and_files.py"
_ROUND_TRIP = "tests/fuzz/test_fuzz.py::test_inputs_are_read_or_refused[roundtrip]"
_CODES = [
    _ALIKE,
    *(f"{_CORE}test_smaller_tiles_change_nothing[{kind}]" for kind in ("minmax-restricted", "minmax-offset")),
    *(
        f"{_CORE}{name}"
        for name in (
            "test_empty_arrays_are_refused",
            "test_float64_beyond_float32_is_refused",
            "test_the_default_scale_dtype",
            "test_what_is_not_finite_is_refused[nan-minmax-affine-float64]",
        )
    ),
    "tests/tensors/test_tiles.py",
]
_FILES = ["tests/stores/test_headers.py", "tests/stores/test_written.py", "tests/stores/test_stores.py"]
_NATIVE = [
    "tests/layouts/test_native.py",
    _ALIKE,
    *(f"tests/test_frozen.py::test_they_decode_to_the_same_values[{version}-]" for version in ("0.1.0", "0.2.0")),
    *(
        f"tests/test_damaged.py::{name}"
        for name in (
            "test_invalid_fields_of_a_tensor",
            "test_invalid_documents",
            "test_a_changed_header_is_not_believed",
        )
    ),
    "tests/layouts/test_native_parts.py",
]
_READ = [
    f"tests/layouts/test_read.py::{name}"
    for name in (
        "test_gptq",
        "test_gptq_in_order_of_activation",
        "test_gptq_zero_points_of_the_example",
        "test_awq",
        "test_awq_order_of_the_example",
        "test_what_is_malformed_is_told",
    )
]
_PIECES = ["tests/layouts/test_settings.py", "tests/layouts/test_pieces.py"]
_EXPORTS = [
    *_PIECES,
    "tests/layouts/test_exports.py::test_bytes_of_autoawq",
    "tests/layouts/test_exports.py::test_bytes_of_gptqmodel",
    *(
        f"tests/layouts/test_exports.py::test_awkward_shapes[{case}]"
        for case in ("awq-w4g16-asym", "awq-w4c", "gptq-w3g64", "gptq-w4g32-asym", "mlx-w4g64-float")
    ),
    "tests/layouts/test_exports.py::test_any_cut_and_any_number_of_threads[awq]",
    "tests/layouts/test_exports.py::test_scales_float16_does_not_hold",
    "tests/layouts/test_exports.py::test_several_schemes",
]
_AUDITS = [f"tests/passes/test_audit{name}.py" for name in ("_places", "_evidence", "")]
_BUDGETS = [
    *(
        f"tests/planning/test_budgets.py::{name}"
        for name in (
            "test_a_target_out_of_reach_is_refused_before_weights_are_read",
            "test_the_file_is_never_a_byte_over_the_target[44444]",
            "test_other_targets",
            "test_one_scheme_for_all",
            "test_no_choice_is_better",
        )
    ),
    "tests/planning/test_statistics.py::test_plan_loses_least_of_outputs_of_all_choices",
]

AREAS: Mapping[str, Mapping[str, Sequence[str]]] = {
    "packing": {"quantcli/tensors/packing.py": ["tests/tensors/test_packing.py"]},
    "grouping": {"quantcli/tensors/rows.py": ["tests/tensors/test_rows.py", "tests/tensors/test_grouping.py"]},
    "codes": {f"quantcli/tensors/{name}.py": _CODES for name in ("api", "fit")},
    "settle": {"quantcli/tensors/settle.py": ["tests/tensors/test_settle.py"]},
    "metrics": {"quantcli/metrics.py": ["tests/test_metrics.py"]},
    "container": {
        f"quantcli/layouts/native/{name}.py": _NATIVE
        for name in ("document", "held", "model", "parts", "reading", "stored", "write")
    },
    "safetensors": {
        f"quantcli/stores/{name}.py": _FILES
        for name in ("safetensors", "safetensors_check", "safetensors_header", "compact", "text")
    },
    "allocation": {
        "quantcli/planning/allocate.py": ["tests/planning/test_allocating.py"],
        "quantcli/passes/budget.py": _BUDGETS,
    },
    "gates": {"quantcli/reports/gates.py": ["tests/reports/test_judge.py"]},
    "audits": {
        f"quantcli/passes/audit{name}.py": _AUDITS
        for name in ("", "_codes", "_kept", "_method", "_path", "_places", "_sample", "_scales")
    },
    "layouts": {
        "quantcli/layouts/pieces.py": _EXPORTS,
        "quantcli/layouts/awq.py": [*_READ, *_EXPORTS],
        "quantcli/layouts/gptq.py": [*_READ, *_EXPORTS],
        "quantcli/layouts/groups.py": ["tests/layouts/test_groups.py"],
    },
}  # fmt: skip

SAMPLE = {
    "packing": 25, "grouping": 70, "codes": 65, "settle": 70, "metrics": 60, "container": 70, "safetensors": 60,
    "allocation": 60, "gates": 60, "audits": 110, "layouts": 60,
}  # fmt: skip
"""Mutants of each area: 710 together; packing has no more."""
