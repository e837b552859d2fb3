"""The tensors of a model as floats in one safetensors file, run by run, whatever layout they were in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import numpy as np

from quantcli.dtypes import DTYPES
from quantcli.errors import DataError, printable
from quantcli.floats import plain_metadata
from quantcli.models import Model, View
from quantcli.passes.tiles import COPY, Progress, Visit, begun, walk
from quantcli.stores import destinations
from quantcli.stores.safetensors import lay_out
from quantcli.tensors.info import TensorInfo


def write(
    model: Model,
    views: Mapping[str, View],
    path: str,
    *,
    dtype: str | None,
    force: bool,
    threads: int,
    progress: Progress | None,
    within: str | None = None,
) -> int:
    """Write the tensors of a model, as `views` shows them, to a safetensors file; its size in bytes.

    dtype: the safetensors dtype of decoded tensors instead of their own. within: the hidden folder in which the file is
    made, None for one of its own. Raises QuantcliError.
    """
    infos = {name: _target(view, dtype) for name, view in views.items()}
    metadata = plain_metadata(model.source)
    try:
        places = lay_out(list(infos.values()), metadata)
    except DataError as error:
        raise error.within(model.source.path) from None
    destinations.check_space(path, places.size, model.source.path)
    with destinations.file(path, places.size, force=force, within=within) as out:
        advance = begun(progress, sum(i.nbytes for i in infos.values()))

        def visit(view: View, at: int) -> Visit:
            if view.scheme is None and view.stored is not None:
                yield [partial(copy, view, start, at) for start in range(0, view.info.nbytes, COPY)]
            else:
                yield [partial(decode, view, first, last, at) for first, last in view.blocks]

        def copy(view: View, start: int, at: int) -> None:
            assert view.stored is not None
            block = view.stored.read_bytes(view.stored.name, start, min(COPY, view.info.nbytes - start))
            out.write(at + start, block.data)
            advance(len(block))

        def decode(view: View, first: int, last: int, at: int) -> None:
            target = infos[view.info.name].dtype
            values = view.values(first, last, target)
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                raise DataError(
                    f"a decoded weight does not fit {target}",
                    place=[model.source.path, printable(view.info.name)],
                    hint="use --dtype float32",
                )
            out.write(at + first * DTYPES[target].bits // 8, values.data.cast("B"))
            advance(values.nbytes)

        for at, piece in places.header(metadata):
            out.write(at, piece)
        offsets = places.offsets
        walk((visit(view, offsets[name]) for name, view in views.items()), threads=threads)
        model.source.check_unchanged()
        out.sync()
        places.check(out.temp, path)
        out.publish()
    return places.size


def _target(view: View, dtype: str | None) -> TensorInfo:
    return replace(view.info, dtype=dtype) if dtype is not None and view.scheme is not None else view.info
