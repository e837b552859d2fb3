"""A checkpoint folder in, a checkpoint folder out: shard by shard under their names, index and config amended."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from quantcli import pipeline
from quantcli.container import Result
from quantcli.exports.compressed_tensors import quantization_config
from quantcli.plan import Plan, TensorPlan
from quantcli.stores.checkpoint import INDEX, Checkpoint
from quantcli.stores.files import read_small
from quantcli.stores.folder import OutputFolder
from quantcli.stores.safetensors import strict_json


@dataclass(frozen=True, slots=True)
class WrittenFolder:
    """A folder that was written; `obstacle` tells why it has no quantization_config, if it has none."""

    plan: Plan
    results: dict[str, Result]
    size: int
    copied: list[str]
    obstacle: str


def write(source: Checkpoint, plan: Plan, path: str, options: pipeline.Options) -> WrittenFolder:
    """Quantize a checkpoint folder into a folder at `path`, which appears only when it is complete."""
    by_name = {t.info.name: t for t in plan.tensors}
    with OutputFolder(path, force=options.force) as out:
        tensors: list[TensorPlan] = []
        results: dict[str, Result] = {}
        weight_map: dict[str, str] = {}
        total = size = 0
        for name, shard in source.shards.items():
            part = Plan(tuple(by_name[info.name] for info in shard.infos()))
            written = pipeline.write(shard, part, shard.metadata, os.path.join(out.temp, name), options)
            tensors += written.plan.tensors
            results |= written.results
            size += written.size
            for output in (o for t in written.plan.tensors for o in t.outputs):
                weight_map[output.name] = name
                total += output.nbytes
        copied = out.copy_side_files(source.folder, ("config.json", os.path.basename(source.index or INDEX)))
        if source.index or len(source.shards) > 1:
            index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
            out.write(os.path.basename(source.index or INDEX), _json(index))
        config, why = quantization_config(tensors)
        original = os.path.join(source.folder, "config.json")
        content: dict[str, Any] = {}
        if os.path.lexists(original):
            found = strict_json(read_small(original, 1 << 24), original)
            content = found if isinstance(found, dict) else {}
        if content or config:
            content.pop("quantization_config", None)
            out.write("config.json", _json({**content, **({"quantization_config": config} if config else {})}))
        source.check_unchanged()
        out.publish()
    return WrittenFolder(Plan(tuple(tensors)), results, size, copied, why)


def dry_size(source: Checkpoint, plan: Plan, digest: str) -> int:
    """The exact size of all shards a plan leads to."""
    by_name = {t.info.name: t for t in plan.tensors}
    parts: Sequence[Any] = list(source.shards.values())
    return sum(
        pipeline.file_layout(shard, Plan(tuple(by_name[i.name] for i in shard.infos())), shard.metadata, digest).size
        for shard in parts
    )


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode("utf-8")
