"""Which shard an index puts a tensor in."""

from __future__ import annotations

import json
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantcli.errors import DataError
from quantcli.stores import text
from quantcli.stores.homes import from_index

NAMES = st.text(max_size=6) | st.sampled_from(["a", "weight_map", "{", "\\", '"'])


def read(path: Path, raw: bytes) -> object:
    """The weight map of an index of these bytes, or what is wrong with it."""
    path.write_bytes(raw)
    try:
        found = from_index(str(path))
    except DataError as error:
        return str(error)
    shards = [*found.shards]
    return [(name, shards[home]) for name, home in zip(found.names, found.homes)]


@given(
    st.dictionaries(NAMES, st.sampled_from(["a.safetensors", "b.safetensors", "x/y", "\u00e9", ""]), max_size=5),
    st.dictionaries(NAMES, st.integers() | NAMES | st.just({"weight_map": {}}), max_size=2),
    st.sampled_from([None, 0, 2]), st.booleans(), st.booleans(), st.sampled_from([1, 7, 1 << 20]),
)  # fmt: skip
def test_an_index_is_read_as_json_is(
    tmp_path_factory: pytest.TempPathFactory, weight_map: dict[str, str], metadata: dict[str, object],
    indent: int | None, last: bool, escaped: bool, piece: int,
) -> None:  # fmt: skip
    """In whatever form, and wherever a piece of it ends: what the library for JSON finds, or the same error."""
    document: dict[str, object] = {"metadata": metadata, "weight_map": weight_map}
    document = document if last else dict(reversed(document.items()))
    raw = json.dumps(document, indent=indent, ensure_ascii=escaped).encode("utf-8", "surrogatepass")
    path = tmp_path_factory.getbasetemp() / "model.safetensors.index.json"
    with mock.patch.object(text, "PIECE", piece):
        found = read(path, raw)
    assert found == read(path, raw[:-1].rstrip() + b', "more": {}}')
    if not isinstance(found, str):
        assert found == [*json.loads(raw)["weight_map"].items()]


@pytest.mark.parametrize(("raw", "problem"), [
    (b'{"weight_map":{"a":"x","a":"x"}}', "duplicate key 'a'"), (b'{"weight_map":{"a":"x"},}', "it is not valid JSON"),
    (b'{"weight_map":{"a":"x"}', "it is not valid JSON"), (b'{"weight_map":{"a":"x"}}{', "it is not valid JSON"),
    (b'{"weight_map":{"a":"x"}, "weight_map":{"b":"x"}}', "duplicate key 'weight_map'"),
    (b'{"weight_map":{"a":"b/c","a":"x"}}', "duplicate key 'a'"), (b'{"weight_map":{"a":1}}', "not a plain file name"),
    (b'{"a":{"weight_map":{"a":"x"}}}', "it has no weight_map"), (b'{"weight_map":{}}', "it has no weight_map"),
    (b'{"weight_map":{"a":"\xff"}}', "it is not valid UTF-8"), (b'{"a":NaN,"weight_map":{"a":"x"}}', "NaN is not JSON"),
    (b'{"weight_map":{"a":"x"},"a":1e999}', "too large a number"), (b"", "it is not valid JSON"),
])  # fmt: skip
def test_damaged_indexes(raw: bytes, problem: str, tmp_path: Path) -> None:
    found = read(tmp_path / "model.safetensors.index.json", raw)
    assert isinstance(found, str) and problem in found
