"""Quantized files back to floats, tile by tile."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np

from quantcli.dtypes import DTYPES, from_float32
from quantcli.errors import DataError, printable
from quantcli.grouping import TileSpan
from quantcli.pipeline import COPY, Progress
from quantcli.reading import Model, Tensor
from quantcli.stores.files import OutputFile, check_space
from quantcli.stores.safetensors import header_bytes, lay_out, validate
from quantcli.tensors import TensorInfo
from quantcli.workers import Crew, Task


def write(model: Model, path: str, *, dtype: str | None, force: bool, threads: int, progress: Progress | None) -> int:
    """Write the decoded tensors of a model to a safetensors file; its size in bytes.

    dtype: the safetensors dtype of decoded tensors instead of their own. Raises QuantcliError.
    """
    infos = {name: _target(tensor, dtype) for name, tensor in model.items()}
    metadata = {k: v for k, v in model.source.metadata.items() if k != "quantcli"}
    places = lay_out(list(infos.values()), metadata)
    check_space(path, places.size, model.source.path)
    with OutputFile(path, places.size, force=force) as out:
        if progress is not None:
            progress.start(sum(i.nbytes for i in infos.values()))

        def tasks() -> Iterator[Task]:
            for name, tensor in model.items():
                at = places.offsets[name]
                if tensor.stored.layout is None:
                    for start in range(0, infos[name].nbytes, COPY):
                        yield partial(copy, tensor, start, at)
                else:
                    for span in tensor.stored.layout.tiles():
                        yield partial(decode, tensor, span, at)

        def copy(tensor: Tensor, start: int, at: int) -> None:
            block = memoryview(bytearray(min(COPY, tensor.stored.info.nbytes - start)))
            model.source.read(tensor.name, start, block)
            out.write(at + start, block)
            advance(len(block))

        def decode(tensor: Tensor, span: TileSpan, at: int) -> None:
            assert tensor.stored.layout is not None
            target = infos[tensor.name].dtype
            decoded = tensor.decoded(span)
            if target == "F16" and tensor.dtype == "F16":
                # The outermost step may reach beyond float16; the original weight cannot have.
                np.clip(decoded, -65504, 65504, out=decoded)
            values = from_float32(decoded, target)
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                raise DataError(
                    f"a decoded weight does not fit {target}",
                    place=[model.source.path, printable(tensor.name)],
                    hint="use --dtype float32",
                )
            size = DTYPES[target].bits // 8
            out.write(at + (span.row * tensor.stored.layout.cols + span.col) * size, values.data.cast("B"))
            advance(values.nbytes)

        def advance(nbytes: int) -> None:
            if progress is not None:
                progress.advance(nbytes)

        out.write(0, header_bytes(places.entries, metadata, places.header_size))
        Crew(tasks(), threads).run()
        model.source.check_unchanged()
        out.sync()
        validate(out.temp, path)
        out.publish()
    return places.size


def _target(tensor: Tensor, dtype: str | None) -> TensorInfo:
    info = tensor.stored.info
    return replace(info, dtype=dtype) if dtype is not None and tensor.scheme is not None else info
