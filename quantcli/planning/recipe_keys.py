"""The keys of a recipe: what each takes and what it means."""

from __future__ import annotations

from collections.abc import Mapping

BATCH_NORM = "batch-norm"
"""What stands for a file of statistics, and means those that follow from batch norms (batch_norms.py)."""

IMPORTANCE, STATISTICS = "importance", "statistics"
"""Keys, and options: a file whose mean squares alone are used, and one of which all is."""

NO_MOMENTS = "second-order rounding needs means or second moments of a layer's inputs"
HELP = "give --statistics FILE; quantcli help statistics says what it holds"

SCHEME: Mapping[str, tuple[str, str]] = {
    "bits": ("1 to 16", "bits per code"),
    "format": ("name", "number format, as for --type"),
    "granularity": ("tensor, channel, group or block", "what shares a scale"),
    "group_size": ("1 or more", "weights along the last axis that share a scale, or rows and columns of a block"),
    "axis": ("whole number", "the channel axis"),
    "symmetric": ("true or false", "codes around 0, or with a zero point"),
    "grid": ("restricted or full", "symmetric codes without or with the lowest"),
    "zero_point": ("int or float", "a whole zero point, or a float offset"),
    "calibration": ("name", "how scales are found, as for --calibration"),
    "options": ("map", "options of the calibration: effort, norm, percentile"),
    "rounding": (
        "nearest, sum-preserving or second-order",
        "to the nearest code, so that the errors of a row add up to 0, or so that they cost little in a layer's output",
    ),
    "levels": ("2 to 256", "how many levels a codebook learns"),
    "codebook": ("list of numbers", "the levels of a codebook, ascending"),
    "scale_dtype": ("dtype", "how scales are stored"),
    "activations": (
        "none, int8, fp8, fp8-group, fp8-static, mxfp8, mxfp4 or nvfp4",
        "how the inputs of the layer are quantized",
    ),
    "rotation": ("4, 16, 64, 256, 1024 or 0", "columns that are rotated together before they are rounded (ConvRot)"),
}
"""Of a scheme: in `default` and in a rule."""

RULE: Mapping[str, tuple[str, str]] = {
    "match": ("pattern", "the tensors or modules it is for"),
    "keep": ("true or false", "leave them as they are"),
    "optional": ("true or false", "it may match nothing"),
    "reason": ("text", "why, as the report shows it"),
    "preset": ("preset", "the preset for such models that it comes from, in recipes of runs without one"),
}
"""Of a rule, beside those of its scheme."""

OPTIONS: Mapping[str, tuple[str, str]] = {
    "include": ("list of patterns", "quantize only these"),
    "exclude": ("list of patterns", "keep these as they are"),
    "keep_defaults": ("true or false", "false is --no-default-keep"),
    "keep_embeddings": ("true or false", "--keep-embeddings or --no-keep-embeddings"),
    "max_shard_size": ("bytes", "split a checkpoint folder into files of at most this many bytes"),
    "to": ("target", "write what another tool loads"),
    "convolution_sums": (
        "true or false",
        "sum-preserving rounding of convolutions in codebooks and formats of levels; true where no rounding or "
        "calibration is named, and no statistics",
    ),
    "allow_unweighted": ("true or false", "quantize layers that the statistics have nothing of"),
    "container": ("true or false", "with the targets gguf and onnx: the quantized tensors alone"),
    "on_nonfinite": ("refuse or keep", "what to do with a tensor that holds NaN or infinity"),
    "digest": ("xxh3, sha256 or none", "digest of each tensor's source bytes"),
}
"""Of a recipe: what else is an option of the command line."""

RECIPE: Mapping[str, tuple[str, str]] = {
    "default": ("map, or a name such as W4A16 or FP8_DYNAMIC", "the scheme of tensors that no rule matches"),
    "rules": ("list of maps", "schemes by pattern; the last that matches decides"),
    "ties": ("list of expressions after re:", "tensors that agree in the first group get one scheme"),
    "importance": ("file", "how much the error of each column counts"),
    "statistics": ("file", "means and second moments of the inputs of layers"),
    **OPTIONS,
}
"""Of a recipe at its top."""
