"""Where the tensors of a safetensors file are put."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from making import NUMPY_OF

from quantcli.errors import DataError
from quantcli.stores.safetensors import METADATA, lay_out
from quantcli.tensors.info import TensorInfo

DTYPES = sorted(set(NUMPY_OF) - {"C64"})
INFOS = st.lists(st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 5), max_size=3)), min_size=1, max_size=12)


@given(INFOS)
def test_every_tensor_is_aligned_and_follows_the_one_before(drawn: list[tuple[str, list[int]]]) -> None:
    """Wider elements go first, so that every tensor is aligned when the file is mapped; equal ones keep their order."""
    infos = [TensorInfo(f"t{n}", dtype, tuple(shape)) for n, (dtype, shape) in enumerate(drawn)]
    found = lay_out(infos, {"a": "text"})
    assert found.header_size % 8 == 0
    at = found.header_size
    for info in found.infos:
        assert found.offsets[info.name] == at and at % NUMPY_OF[info.dtype].itemsize == 0
        at += NUMPY_OF[info.dtype].itemsize * math.prod(info.shape)
    assert found.size == at
    places = [(-NUMPY_OF[i.dtype].itemsize, infos.index(i)) for i in found.infos]
    assert places == sorted(places) and len(places) == len(infos)


def test_a_tensor_with_the_name_of_the_metadata() -> None:
    with pytest.raises(DataError, match="cannot hold a tensor of this name"):
        lay_out([TensorInfo(METADATA, "F32", (1,))], {})
