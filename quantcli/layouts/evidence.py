"""Evidence that a model is quantized already: names, dtypes and shapes of its tensors, and its configuration.

There are three kinds. A layout of a known tool: codes in a dtype of codes beside the parameters that decode them. A
configuration (config.json and the like) that names a method, where some tensor can be codes: where all are plain
floats it is out of date, as after `save_pretrained` of a dequantized model. And codes without scales: 8-bit floats,
which may be plain casts and nothing more, and whole numbers under the name of a weight.

A name alone tells nothing of a float tensor: `layer_scale`, `logit_scale`, or a `weight_scale` beside a float weight
belong to float models. Buffers (position ids, masks, counters) are I64 or BOOL, or have no name of a weight.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from quantcli import registry
from quantcli.errors import DataError, printable
from quantcli.layouts import headers, reader
from quantcli.layouts.reader import CODES, COMFYUI, OWN, SMALL_FLOATS, WHOLE
from quantcli.layouts.writer import KEY as EXPORT_KEY
from quantcli.stores import Source, places
from quantcli.stores.places import read_small
from quantcli.strict import strict_json
from quantcli.tensors.info import TensorInfo

if TYPE_CHECKING:
    from quantcli.stores.onnx_graph import Graph

CONFIGS = ("config.json", "quantize_config.json", "quant_config.json", "hf_quant_config.json", "quanto_qmap.json")
"""Files beside a model that may say how it is quantized: of transformers, GPTQ, AWQ, ModelOpt and optimum-quanto."""

METHODS = frozenset((
    "auto-round", "bitsandbytes", "fbgemm_fp8", "fp8", "intel/auto-round", "metal", "modelopt_fp4", "modelopt_mixed",
    "modelopt_mxfp8", "mxfp4", "ptpc_fp8", "quark",
))  # fmt: skip
"""What quantization_config calls methods whose tensors are those of a layout, beside the names of layouts themselves:
AMD's Quark and fbgemm store 8-bit floats with their scales as others do, auto-round as GPTQ and AWQ."""

PLAIN_HINT = "--source-layout plain reads every tensor by its dtype"


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Evidence that a model is quantized: its layout, what was seen, and whether that is certain; codes
    without scales may be plain casts."""

    layout: str
    seen: str
    certain: bool = True

    def __str__(self) -> str:
        return f"{self.layout}: {self.seen}"


# ---- tensors ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Layout:
    """A layout by the tensor of its codes: how its name ends, its dtypes (none: any), and the names of which one must
    stand beside it, {n} for its name, {s} for that without the ending, {m} for that of its module. flat: whether it has
    one dimension, and not more."""

    name: str
    ending: str
    dtypes: tuple[str, ...]
    beside: tuple[str, ...] = ()
    flat: bool = False


_FP8 = ("F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ")
_SCALES = ("{n}_scale", "{n}_scales", "{n}_scale_inv", "{n}.scale", "{n}.scales", "{n}_absmax", "{n}.absmax")
_OF_MODULE = ("{m}.weight_scale", "{m}.weight_scales", "{m}.scale", "{m}.scales", "{m}.scale_inv", "{m}.absmax",
              "{m}.qscale_weight")  # fmt: skip

_LAYOUTS = (
    _Layout("HQQ", "W_q", (), ("{s}nbits", "{s}zero", "{s}meta")),
    _Layout("optimum-quanto", "._data", (), ("{s}._scale", "{s}_scale")),
    _Layout("torchao", "_qdata", (), ("{s}_scale", "{s}_scale_and_zero")),
    _Layout("bitsandbytes in 4 bits", ".quant_state.bitsandbytes__nf4", ("U8",), flat=True),
    _Layout("bitsandbytes in 4 bits", ".quant_state.bitsandbytes__fp4", ("U8",), flat=True),
    _Layout("bitsandbytes in 4 bits", "", ("U8",), ("{n}.absmax",)),
    _Layout("bitsandbytes in 8 bits", ".weight", ("I8",), ("{m}.SCB",)),
    _Layout("ComfyUI", ".comfy_quant", ("U8",), flat=True),
    _Layout("ComfyUI's scaled 8-bit floats", ".weight", (*_FP8, "U8"), ("{m}.scale_weight",)),
    _Layout("SVDQuant", ".qweight", WHOLE, ("{m}.wscales",)),
    _Layout("GPTQ", "qweight", WHOLE, ("{s}g_idx",)),
    _Layout("GPTQ or AWQ", "qweight", ("I32",)),
    _Layout("GPTQ or AWQ", "qweight", WHOLE, ("{s}qzeros",)),
    _Layout("EXL2", ".q_weight", ("I32",)),
    _Layout("EXL3", ".trellis", ("I16", "U16")),
    _Layout("AQLM", ".codes", WHOLE, ("{s}.codebooks",)),
    _Layout("VPTQ", ".indices", WHOLE, ("{s}.centroids",)),
    _Layout("QuIP#", ".Qidxs", (*WHOLE, "I64")),
    _Layout("Marlin", ".B", ("I32",), ("{s}.s",)),
    _Layout("MLX", ".weight", ("U32",), ("{m}.scales",)),
    _Layout("SDNQ", ".weight", ("U8", "I16", "I64"), ("{m}.scale",), flat=True),
    _Layout("ModelOpt with scaled inputs", ".weight", ("U8", "I8", *_FP8), ("{m}.pre_quant_scale",)),
    _Layout("MXFP4 of gpt-oss", "_blocks", ("U8",), ("{s}_scales",)),
    _Layout("NVFP4 of ModelOpt", "", ("U8",), ("{n}_scale_2",)),
    _Layout("compressed-tensors", "_packed", ("I32", "U8"), ("{s}_scale",)),
    _Layout("FP8 blocks of transformers and DeepSeek", "", _FP8, ("{n}_scale_inv",)),
    _Layout("onnxruntime's quantizer", "_quantized", ("U8", "I8", "U16", "I16", *_FP8), ("{s}_scale",)),
    _Layout("8-bit floats with scales", "", _FP8, (*_SCALES, *_OF_MODULE)),
    _Layout("small floats with scales", "", SMALL_FLOATS, (*_SCALES, *_OF_MODULE)),
    _Layout("integers as compressed-tensors stores them", "weight", ("I8",), ("{n}_scale",)),
    _Layout("integers with scales", "", WHOLE, (*_SCALES, "{n}_zero_point")),
    _Layout("integers with scales", "weight", WHOLE, _OF_MODULE),
)
"""The first that fits is reported."""

_OF_ANY_DTYPE = tuple(layout.ending for layout in _LAYOUTS if not layout.dtypes)
_WEIGHT = ("weight", "_packed", "_blocks", "_qdata", "_quantized", "._data", ".W_q")
"""How the names of weights end that are stored as whole numbers."""


def _can_be_codes(info: TensorInfo) -> bool:
    return info.dtype in CODES and len(info.shape) > 1 and info.numel > 0


def _fits(layout: _Layout, info: TensorInfo, infos: Mapping[str, TensorInfo]) -> str | None:
    """The tensor beside one that holds codes of this layout (empty where none must be); None where it does not."""
    name = info.name
    if not name.endswith(layout.ending) or (layout.dtypes and info.dtype not in layout.dtypes):
        return None
    if layout.flat != (len(info.shape) < 2):
        return None
    stem = name[: len(name) - len(layout.ending)]
    while stem.endswith("._data"):
        stem = stem.removesuffix("._data")
    module = name.rpartition(".")[0]
    parts = {"n": name, "s": stem, "m": module}
    if not layout.beside:
        return ""
    return next((n for t in layout.beside if (n := t.format(**parts)) in infos and n != name), None)


def _described(info: TensorInfo, beside: str) -> str:
    with_it = f" beside {printable(beside, 200)}" if beside else ""
    return f"{printable(info.name, 200)} is {info.dtype}{with_it}"


def _suspect(infos: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    """Those of these tensors that can be codes or decode some, by dtype and name alone. A model of floats has none: one
    look at each of its tensors is enough."""
    dtypes, endings = frozenset((*CODES, "I64")), (*_OF_ANY_DTYPE, *_COMPANIONS, "zero")
    return {i.name: i for i in infos.values() if i.dtype in dtypes or i.name.endswith(endings)}


def _of_layout(suspect: Mapping[str, TensorInfo], infos: Mapping[str, TensorInfo]) -> Evidence | None:
    """The layout some of these tensors are in, codes and what decodes them."""
    for info in suspect.values():
        if info.dtype not in (*CODES, "I64") and not info.name.endswith(_OF_ANY_DTYPE):
            continue
        for layout in _LAYOUTS:
            beside = _fits(layout, info, infos)
            if beside is not None:
                return Evidence(layout=layout.name, seen=_described(info, beside))
    return None


_COMPANIONS = (
    "weight_scale", "weight_scale_inv", "weight_scale_2", "weight_global_scale", "weight_zero_point", "scale_weight",
    "qscale_weight", "proj_scale_inv", "proj_scales", "qzeros", "wscales", ".SCB", ".absmax", "._scale", "._shift",
    "_scale_and_zero",
)  # fmt: skip
"""How the names of tensors end that decode others, and mean nothing by themselves."""


def _of_companions(suspect: Mapping[str, TensorInfo], infos: Mapping[str, TensorInfo]) -> Evidence | None:
    """Tensors that decode others, whose codes are not there: those of a shard that is missing, or of another name.
    Beside a float weight they are left of its training."""
    for name, info in suspect.items():
        module, _, last = name.rpartition(".")
        if f"{module}.weight" in infos:
            continue
        scale = infos.get(f"{module}.scale")  # of HQQ, whose names mean something else elsewhere
        of_hqq = last == "zero" and scale is not None and scale.shape == info.shape and len(info.shape) == 2
        if of_hqq or name.endswith(_COMPANIONS):
            seen = f"{printable(name, 200)} is there, but not the codes that it belongs to"
            return Evidence(layout="scales without codes", seen=seen, certain=False)
    return None


def _of_codes(infos: Iterable[TensorInfo]) -> Evidence | None:
    """Weights that are codes by their dtype, with nothing beside them that would decode them."""
    for info in filter(_can_be_codes, infos):
        if info.dtype in SMALL_FLOATS:
            return Evidence(layout="8-bit floats or smaller", seen=_described(info, ""), certain=False)
        if info.name.endswith(_WEIGHT):
            return Evidence(layout="integers as weights", seen=_described(info, ""), certain=False)
    return None


# ---- configurations ---------------------------------------------------------------------------------------------


def beside(path: str) -> Mapping[str, Any]:
    """config.json beside a model, merged with the other CONFIGS. Raises DataError when one cannot be read."""
    if path == "-":
        return {}
    folder = path if places.is_folder(path) else os.path.dirname(path)
    found: dict[str, Any] = {}
    files = [os.path.join(folder, name) for name in CONFIGS]
    for name, file, there in zip(CONFIGS, files, list(places.each(places.is_file, files))):
        if there:
            document = strict_json(read_small(file, 10_000_000), file)
            if not isinstance(document, dict):
                raise DataError("it is not an object", place=[file])
            if name == "config.json":
                found = document
            elif name == "quantize_config.json" and "quantization_config" not in found:
                found = {**found, "quantization_config": document}
            else:
                found = {**found, name: document}
    return found


def in_header(metadata: Mapping[str, str]) -> Mapping[str, Any]:
    """The keys for config.json that the header of an exported file holds for its loader. Raises DataError."""
    if EXPORT_KEY not in metadata:
        return {}
    document = strict_json(metadata[EXPORT_KEY].encode("utf-8", "replace"), EXPORT_KEY)
    found = document.get("config") if isinstance(document, dict) else None
    if not isinstance(found, dict):
        raise DataError("it has no config", place=[EXPORT_KEY])
    return found


def stated(source: Source, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """A configuration, and what it leaves open by the record in an export's header. Raises DataError."""
    return {**in_header(source.metadata), **config}


def _sections(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What may have a description of its own: a configuration, and that of the text in a multimodal model's."""
    return [config, *(v for v in config.values() if isinstance(v, dict))][:100]


def claimed(config: Mapping[str, Any]) -> str | None:
    """The claim of a configuration that its model is quantized; None without one."""
    keys = ("quantization_config", "compression_config", "quantization")
    for section in _sections(config):
        for key in keys:
            claim = section.get(key)
            if isinstance(claim, dict) and claim and (section is config or key == keys[0]):
                return f"config.json has {key}{_method(claim)}"
    for name in CONFIGS[2:]:
        claim = config.get(name)
        own = claim.get("quantization", claim) if isinstance(claim, dict) else None
        if isinstance(own, dict) and own and ("quant_algo" not in own or own["quant_algo"]):
            return f"{name} is present{_method(own)}"
    return None


def _of_method(config: Mapping[str, Any]) -> Evidence | None:
    """Evidence from a configuration that names a method of which nothing is known, although tensors look like those of
    a layout."""
    for section in _sections(config):
        claim = section.get("quantization_config")
        method = claim.get("quant_method") if isinstance(claim, dict) else None
        if isinstance(claim, dict) and isinstance(method, str) and method.lower() not in METHODS:
            layouts = {*registry.names("layouts", "READS"), *registry.names("layouts", "WRITES")}
            if method.lower() not in layouts:
                return Evidence(layout="an unknown method", seen=f"config.json has quantization_config{_method(claim)}")
    return None


def _method(claim: Mapping[str, Any]) -> str:
    for key in ("quant_method", "quant_algo", "mode", "format", "bits", "w_bit"):
        if isinstance(claim.get(key), (str, int)) and claim[key]:
            return f" ({key} {printable(str(claim[key]), 60)})"
    return ""


# ---- together ---------------------------------------------------------------------------------------------------


def found_in(source: Source, config: Mapping[str, Any]) -> Evidence | None:
    """Evidence that a source is quantized, by quantcli or another tool; None where its tensors are plain.

    config: the result of `beside`. Raises DataError for a header that cannot be read.
    """
    if source.documents:
        return Evidence(layout="quantcli", seen="its header says so")
    if source.blocks:
        name, block = next(iter(source.blocks.items()))
        return Evidence(layout="GGUF", seen=f"{printable(name, 200)} is {block.type.name}")
    infos = source.named()
    if (graph := _own_graph(source)) is not None:
        suspect = _suspect(infos)
        return _of_nodes(graph, infos) or _of_layout(suspect, infos) or _of_codes(suspect.values())
    module = next(iter(headers.layers(source)), None)
    if module is not None:
        return Evidence(layout="ComfyUI", seen=f"{COMFYUI} in its header describes {printable(module, 200)}")
    return _with_config(infos, stated(source, config))


def _with_config(infos: Mapping[str, TensorInfo], config: Mapping[str, Any]) -> Evidence | None:
    suspect = _suspect(infos)
    known = _with_claim(_of_layout(suspect, infos) or _of_reader(suspect, infos, config), config)
    return known or _of_claim(suspect, config) or _of_codes(suspect.values()) or _of_companions(suspect, infos)


def _with_claim(known: Evidence | None, config: Mapping[str, Any]) -> Evidence | None:
    """Evidence, if there is any, with what a configuration says besides, which may name the tool."""
    if known is None:
        return None
    claim = claimed(config)
    return Evidence(layout=known.layout, seen=f"{known.seen}, and {claim}" if claim is not None else known.seen)


def _of_reader(
    suspect: Mapping[str, TensorInfo], infos: Mapping[str, TensorInfo], config: Mapping[str, Any]
) -> Evidence | None:
    """Evidence from the reader of a layout that decodes these tensors, or finds a problem in them: a layout that
    quantcli reads needs no line in the table above."""
    for name in reader.possible(suspect, config):
        layout = registry.headline("layouts", name, "READS").partition(": ")[0]
        try:
            found = registry.get("layouts", name, "READS").find(infos, config, None)
        except DataError as error:
            return Evidence(layout=layout, seen=str(error), certain=False)
        if found:
            first, *others = found[0].parts
            return Evidence(layout=layout, seen=_described(first, others[0].name if others else ""))
    return None


def _of_claim(
    suspect: Mapping[str, TensorInfo], config: Mapping[str, Any], dtypes: tuple[str, ...] = CODES
) -> Evidence | None:
    """Evidence from a configuration, where a tensor of one of these dtypes can be codes."""
    claim = claimed(config)
    codes = next((info for info in suspect.values() if _can_be_codes(info) and info.dtype in dtypes), None)
    if claim is None or codes is None:
        return None
    return Evidence(layout="codes of another tool", seen=f"{_described(codes, '')}, and {claim}")


def _own_graph(source: Source) -> Graph | None:
    """The graph of an ONNX file; None of what is derived from one, for that holds no codes any more."""
    return source.graph if source.kind == "onnx" else None


def _of_nodes(graph: Graph, infos: Mapping[str, TensorInfo]) -> Evidence | None:
    """Evidence from the nodes of an ONNX graph."""
    return _decoded_by_node(graph, infos) or _computed_with(graph, infos)


def _decoded_by_node(graph: Graph, infos: Mapping[str, TensorInfo]) -> Evidence | None:
    """A stored weight that a node of an ONNX graph decodes."""
    node = next((n for n in graph.nodes if n.weight in infos), None)
    if node is None:
        return None
    return Evidence(layout=f"ONNX with {node.operator}", seen=f"a node decodes {printable(node.weight, 200)}")


def _computed_with(graph: Graph, infos: Mapping[str, TensorInfo]) -> Evidence | None:
    """Codes that a node of an ONNX graph computes with directly."""
    found = next(((n, o) for n, o in graph.computed.items() if n in infos), None)
    if found is None:
        return None
    name, operator = found
    return Evidence(
        layout=f"ONNX with {operator}, as onnxruntime's quantizer writes it",
        seen=f"a node computes with {printable(name, 200)}, which is {infos[name].dtype}",
    )


def out_of_date(source: Source, config: Mapping[str, Any]) -> str | None:
    """The claim of a configuration that a source without any sign of it is quantized; None without such a claim."""
    claim = None if source.kind in OWN else claimed(config)
    return f"{claim}, but no tensor is stored as codes" if claim is not None else None


def undecoded(
    source: Source, infos: Mapping[str, TensorInfo], config: Mapping[str, Any], *, others: bool
) -> Evidence | None:
    """Evidence that some of these tensors of a source, which no layout has decoded, belong to a layout that is not
    supported. others: whether a layout has decoded others: then the configuration refers to those, whose method must be
    known, and only small floats that are left are codes, such as those whose scales are in another file."""
    graph = _own_graph(source)
    found = _computed_with(graph, infos) if graph is not None else None
    dtypes = SMALL_FLOATS if others else CODES
    found = found or (_of_method(config) if others else None)
    suspect = _suspect(infos)
    found = found or _with_claim(_of_layout(suspect, infos), config)
    return found or _of_claim(suspect, config, dtypes) or _of_companions(suspect, infos)
