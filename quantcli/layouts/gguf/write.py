"""A GGUF: the model of a checkpoint folder as llama.cpp runs it, or with --container the tensors of any source alone.

A folder whose config.json names a model of one of the families gives that model: its keys, its vocabulary, llama.cpp's
names and order of rows; so does the file of a text encoder that ComfyUI loads (text_encoders). Kept tensors keep their
dtype, except vectors, which llama.cpp takes as F32, F64, which it cannot run, and 8-bit floats, which GGUF does not
have. A container has the tensors under their own names, and the architecture `quantcli`, which nothing runs; dtypes
GGUF does not have are widened there, which keeps the numbers exactly.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import xxhash

from quantcli import __version__
from quantcli.architectures import Architecture
from quantcli.architectures.experts import Experts, Naming
from quantcli.asking import changed
from quantcli.errors import DataError, UsageError, printable
from quantcli.layouts.config import json_beside
from quantcli.layouts.gguf import text_encoders
from quantcli.layouts.gguf.blocks import block_type, obstacle
from quantcli.layouts.gguf.general import pooling, title
from quantcli.layouts.gguf.images.models import check_names
from quantcli.layouts.gguf.images.models import supported as image_models
from quantcli.layouts.gguf.model import GgufModel, model_of, supported
from quantcli.layouts.gguf.names import float_only
from quantcli.layouts.gguf.shards import split
from quantcli.layouts.gguf.tensors import SIZES, Place, job_of
from quantcli.layouts.gguf.types import NUMBERS, WEIGHTS, file_type_of, like
from quantcli.layouts.gguf.vocabulary import FILES, Vocabulary, vocabulary
from quantcli.layouts.pieces import facts
from quantcli.layouts.writer import KEY, Beside, ContainerFile, Conversion, Weight, had_instead
from quantcli.scheme import Scheme
from quantcli.stores.gguf import MAX_DIMENSIONS
from quantcli.stores.gguf_writer import LLAMA, LONGEST_NAME, GgufTensor, Room, lay_out, value_bytes
from quantcli.tensors.info import TensorInfo

if TYPE_CHECKING:
    from numpy.typing import NDArray


ARCHITECTURE = "quantcli"
"""The architecture key of a container."""

WIDER = {"BOOL": "I8", "U8": "I16", "U16": "I32", "U32": "I64", "F8_E4M3": "F16", "F8_E5M2": "F16"}
"""A dtype that holds all values of each dtype that GGUF does not have."""

RUNS = {"F32": "F32", "F16": "F16", "BF16": "BF16", "F64": "F32", "F8_E4M3": "F16", "F8_E5M2": "F16"}
"""The dtype in which llama.cpp runs matrices of a dtype."""

TABLES = ("token_embd.weight", "output.weight")
"""llama.cpp's names of the embedding and the output head, which may have another type than all else."""

HEAD_BITS = 8
"""Bits of the output head."""

POSITIONS = re.compile(r"(?:^|\.)(?:position_embeddings|token_type_embeddings|embed_positions|wpe)\.weight$")
"""Names of embeddings that llama.cpp takes in floating point only."""


def shape(weight: Weight) -> str | None:
    """Why GGUF cannot store a weight: rows are whole blocks, there are up to four dimensions, and some tensors of
    llama.cpp are floats."""
    if float_only(weight.info.name):
        return "llama.cpp takes it in floating point only"
    if len(weight.info.shape) > MAX_DIMENSIONS:
        return f"it has {len(weight.info.shape)} dimensions"
    return obstacle(*facts(weight), weight.info.shape)


def tables(info: TensorInfo, kind: str, scheme: Scheme, model: Architecture) -> Scheme | None:
    """The scheme of an embedding or output head as llama-quantize has it, which gives the embedding the type of the
    file and the output more: Q6_K, and beside plain integers Q8_0 here. An embedding that is the output too gets that
    one; a head beside it is left out."""
    if (kind == "lm-head" and model.tied) or POSITIONS.search(info.name):
        return None
    if kind == "embedding" or scheme.bits == HEAD_BITS:
        return scheme
    if scheme.storage != "plain" or scheme.format != "int" or scheme.binary:
        return like("Q6_K", scheme)
    return changed(
        scheme, bits=HEAD_BITS, granularity="group", group_size=WEIGHTS, symmetric=True, zero_point="int", grid=None
    )


def experts(layer: Experts, types: Sequence[str], model: Architecture) -> Naming:
    """How llama.cpp wants experts: all gates of a layer in one tensor, and so on, here under the names of most
    checkpoints."""
    block = layer.prefix.removesuffix(".experts")
    own = block.removesuffix(".block_sparse_moe")
    home = (block, f"{own}.mlp") if own != block else None
    return Naming(stacked=True, prefix=f"{home[1] if home else block}.experts", home=home)


# ---- the whole --------------------------------------------------------------------------------------------------


INSIST = "--container writes a GGUF of the tensors alone, which llama.cpp does not run"


def convert(tensors: Sequence[Weight], beside: Beside, *, file_type: int | None = None) -> Conversion:
    """The model that config.json beside the weights names. file_type: its number, None for that of most weights.

    Raises UsageError for a model of another architecture, or without config.json, and for weights that llama.cpp does
    not support in blocks; DataError for a model of the family that llama.cpp would run differently or not at all, and
    for names, shapes and numbers that GGUF cannot hold.
    """
    config = json_beside(beside, "config.json")
    alone = None if config is not None else text_encoders.config_of([t.info for t in tensors])
    config = config or alone
    if config is None:
        check_names({t.info.name for t in tensors})
        hint = (
            f"name the checkpoint folder of a model, or the file of one for ComfyUI ({image_models()}); {supported()}"
        )
        hint += f"; {INSIST}"
        raise UsageError("it needs the model's config.json", place=["--to gguf"], hint=hint)
    try:
        model = model_of(config, [t.info for t in tensors])
    except UsageError as error:
        raise UsageError(error.problem, place=error.place, hint=f"{error.hint}; {INSIST}") from None
    except DataError as error:
        raise DataError(error.problem, place=error.place, hint=error.hint or INSIST) from None
    if alone is not None:
        model = replace(model, notes=(*model.notes, text_encoders.NOTE))
    return _model(tensors, model, config, beside, file_type)


def container(tensors: Sequence[Weight], beside: Beside, *, file_type: int | None = None) -> Conversion:
    """The tensors under their own names. Raises DataError for a dtype that GGUF does not have."""
    places = {}
    for tensor in tensors:
        info = tensor.info
        kind = block_type(tensor.scheme) if tensor.scheme else WIDER.get(info.dtype, info.dtype)
        if kind not in SIZES:
            raise DataError(
                f"GGUF has no {info.dtype}", place=[printable(info.name)], hint="start from a file without it"
            )
        places[info.name] = Place(name=shortened(info.name), type=kind)
    notes = ["the file is a container of these tensors, not a model that llama.cpp runs"]
    long = [(name, place.name) for name, place in places.items() if place.name != name]
    if long:
        shown = " is ".join(printable(name, 120) for name in long[0])
        notes.append(f"llama.cpp has room for names of {LONGEST_NAME} bytes: {shown}{_more(len(long))}")
    widened = [t.info for t in tensors if t.scheme is None and t.info.dtype in WIDER]
    for dtype in dict.fromkeys(info.dtype for info in widened):
        notes.append(f"GGUF has no {dtype}: {_some(widened, dtype)} written as {WIDER[dtype]}")
    return conversion(tensors, places, {"general.architecture": ARCHITECTURE}, {}, {}, notes, file_type)


def shortened(name: str) -> str:
    """A name that llama.cpp has room for: of a longer one the end, behind a number made of all of it."""
    raw = name.encode()
    if len(raw) <= LONGEST_NAME:
        return name
    end = raw[len(raw) - (LONGEST_NAME - 17) :].decode(errors="ignore")
    return f"{xxhash.xxh3_64_hexdigest(raw)}.{end}"


def _more(count: int) -> str:
    return f", and {count - 1} more are shortened too" if count > 1 else ""


def _some(infos: Sequence[TensorInfo], dtype: str) -> str:
    """A short description of the tensors of a dtype."""
    names = [info.name for info in infos if info.dtype == dtype]
    return printable(names[0], 120) + (" is" if len(names) == 1 else f" and {len(names) - 1} more are")


def of_types(tensors: Sequence[Weight], file_type: int | None) -> list[str]:
    """Notes on the types of weights: rows that have another one than was asked for, what the file is where no file type
    was named, and one without the tensors that its name promises."""
    weights = [(t, block_type(t.scheme)) for t in tensors if t.scheme is not None]
    notes = had_instead(tensors)
    kinds = Counter(kind for t, kind in weights if t.reason in ("default", "rule"))
    if file_type == NUMBERS["MXFP4"] and "MXFP4" not in (kind for _, kind in weights):
        notes.append("no tensor is MXFP4: only experts become that, and this model has none")
    if file_type is None and len(kinds) == 1:
        [kind] = kinds
        other = file_type_of(kind)
        if other != kind:
            notes.append(f"weights are {kind}; --to gguf:{other} has the types that llama-quantize gives each tensor")
    return notes


def _model(
    tensors: Sequence[Weight], model: GgufModel, config: Mapping[str, Any], beside: Beside, file_type: int | None
) -> Conversion:
    """The model as llama.cpp runs it."""
    by_name = {t.info.name: t for t in tensors}
    places, rounded = {}, []
    for tensor in sorted(model.tensors, key=lambda t: in_order(t.name)):
        weight = by_name[tensor.source]
        info = weight.info
        if weight.scheme is not None:
            if tensor.float32:
                problem = f"llama.cpp takes it as F32 only, and it is {weight.scheme.name}"
                raise UsageError(problem, place=[printable(info.name)], hint="keep norms and biases as they are")
            kind = block_type(weight.scheme)
        elif info.dtype not in RUNS:
            raise DataError(f"llama.cpp cannot run {info.dtype}", place=[printable(info.name)])
        else:
            kind = "F32" if tensor.float32 else RUNS[info.dtype]
            rounded += [info] if info.dtype == "F64" else []
        places[info.name] = Place(
            name=tensor.name, type=kind, order=tensor.order, units=tensor.units, raised=tensor.raised
        )
    special = {key: value for key, value in config.items() if key.endswith("_token_id")}
    found = _words(tuple(beside(name) for name in FILES), json.dumps(special), model.vocabulary)
    notes = [*of_types(tensors, file_type), *model.notes, *([found.note] if found.note else [])]
    if found.obstacle and beside("tokenizer.json") is not None:
        hint = "move tokenizer.json away for a model that llama.cpp runs on token ids only"
        raise DataError(f"llama.cpp has no such tokenizer: {found.obstacle}", hint=hint)
    if found.obstacle:
        notes.append(
            f"the file has no vocabulary, so llama.cpp runs it on token ids only: {found.obstacle}; for a model that "
            "reads text, put that of the original beside config.json"
        )
        notes += text_encoders.without_vocabulary(config)
    if rounded:
        notes.append(f"llama.cpp cannot run F64: {_some(rounded, 'F64')} rounded to F32")
    keys = {"general.architecture": model.architecture, **title(config, beside)}
    own = {**model.keys, **pooling(model, beside), **found.keys}
    return conversion(tensors, places, keys, own, model.made, notes, file_type)


@lru_cache(maxsize=1)
def _words(files: tuple[bytes | None, ...], special: str, size: int) -> Vocabulary:
    """The vocabulary of a model in FILES, its keys as bytes. 128 thousand tokens take half a second and 140 MB, and a
    model is converted several times: to know its size, and to be written."""
    found = vocabulary(dict(zip(FILES, files)).get, json.loads(special), size)
    return replace(found, keys={key: value_bytes(value) for key, value in found.keys.items()})


def in_order(name: str) -> tuple[int, str]:
    """llama.cpp's order: the embedding, layer by layer, the head."""
    layer = re.match(r"(?:enc\.)?blk\.(\d+)\.", name)
    return (int(layer[1]) if layer else -1 if name.startswith("token_embd.") else 1 << 30), name


def conversion(
    tensors: Sequence[Weight],
    places: Mapping[str, Place],
    first: Mapping[str, Any],
    keys: Mapping[str, Any],
    made: Mapping[str, NDArray[Any]],
    notes: Sequence[str],
    file_type: int | None = None,
    room: Room = LLAMA,
) -> Conversion:
    """What becomes of tensors at these places. first, keys: of the file, before and behind those of its types. made:
    F32 tensors that are computed. file_type: its number, None for that of most weights. room: of the program that loads
    it."""
    by_name = {t.info.name: t for t in tensors}
    shapes = [GgufTensor(name, "F32", values.shape) for name, values in made.items()]
    shapes += [GgufTensor(p.name, p.type, by_name[source].info.shape) for source, p in places.items()]
    kind = _file_type(by_name, places) if file_type is None else {"general.file_type": file_type}
    general = {**first, **kind, "general.quantization_version": 2}
    own = {**general, **keys, "quantcli.version": __version__}
    lay_out(own, shapes, room)  # names, shapes and numbers that GGUF cannot hold are refused here

    def files(base: str, record: str, limit: int | None) -> list[ContainerFile]:
        return split(base, {**own, KEY: record}, shapes, made, limit, room)

    return Conversion(job=lambda t: job_of(t, places[t.info.name]), holds=places.__contains__, files=files, notes=notes)


def _file_type(by_name: Mapping[str, Weight], places: Mapping[str, Place]) -> dict[str, Any]:
    """The key for the type of most weights in blocks, those of the layers where there are some; of equally frequent
    types the last by name, so that order does not matter."""
    count: Counter[str] = Counter()
    in_blocks = [(by_name[source].info, place) for source, place in places.items() if by_name[source].scheme]
    layers = [pair for pair in in_blocks if pair[1].name not in TABLES]
    for info, place in layers or in_blocks:
        count[place.type] += info.numel
    most = max(count, key=lambda kind: (count[kind], kind), default=None)
    return {} if most is None else {"general.file_type": NUMBERS[most]}
