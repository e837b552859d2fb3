"""A GGUF made of another one: its keys, its tokenizer, its names, and other types of tensors.

What a model needs in llama.cpp, whatever its architecture, its file has already. Keys are copied as they are stored,
except those about the types and the number of the files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from quantcli.errors import DataError, printable
from quantcli.layouts.gguf.blocks import block_type
from quantcli.layouts.gguf.tensors import SIZES, Place
from quantcli.layouts.gguf.write import conversion, in_order
from quantcli.layouts.writer import Again, Conversion, Weight

if TYPE_CHECKING:
    from quantcli.stores import Source

NAME = "general.architecture"
_RENEWED = re.compile(r"general\.(?:alignment|file_type|quantization_version)|split\..*|quantize\..*|quantcli.*")
"""Keys that are not those of the model: of the types of its tensors, of their files, and of how those were made."""


def again(source: Source, *, file_type: int | None = None) -> Again | None:
    """How the model of a source with the keys of a GGUF is written again. file_type: as in `conversion`."""
    keys = source.raw_keys()
    return Again(convert=partial(convert, keys=keys, file_type=file_type)) if keys else None


def convert(tensors: Sequence[Weight], keys: Mapping[str, bytes], file_type: int | None) -> Conversion:
    """The model of a GGUF with these tensors. keys: its own, as they are stored; file_type: as in `conversion`.

    Raises DataError where it names no architecture, which llama.cpp does not load, and for a dtype that GGUF does not
    have.
    """
    if NAME not in keys:
        raise DataError("it is missing, so llama.cpp would not load the file", place=[NAME])
    places = {}
    for tensor in sorted(tensors, key=lambda t: in_order(t.info.name)):
        kind = block_type(tensor.scheme) if tensor.scheme else tensor.info.dtype
        if kind not in SIZES:
            raise DataError(f"GGUF has no {kind}", place=[printable(tensor.info.name)])
        places[tensor.info.name] = Place(name=tensor.info.name, type=kind)
    kept = {name: value for name, value in keys.items() if name != NAME and not _RENEWED.fullmatch(name)}
    return conversion(tensors, places, {NAME: keys[NAME]}, kept, {}, [], file_type)
