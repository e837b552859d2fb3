"""Runs in the peers' environment onnx: float models in a folder, and what onnxruntime makes of quantized ones.

    python graphs_client.py models FOLDER
    python graphs_client.py run JOBS.json

The first writes NAME.onnx of every model. JOBS is a list of {"name", "float", "quantized", "decoded"}, the last a
safetensors file of the weights that quantcli decodes; for each a line of JSON is printed: the SQNR of the outputs
beside those of the float model, and how far they are from those of the float model with the decoded weights, as a share
of the largest.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterator
from importlib.metadata import files
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper
from safetensors.numpy import load_file

PACKAGED = {
    "silero": ("silero-vad", "silero_vad.onnx"),
    "silero without branches": ("silero-vad", "silero_vad_op18_ifless.onnx"),
    "magika": ("magika", "model.onnx"),
    "rapidocr recognition": ("rapidocr-onnxruntime", "ch_PP-OCRv4_rec_infer.onnx"),
    "rapidocr detection": ("rapidocr-onnxruntime", "ch_PP-OCRv4_det_infer.onnx"),
    "rapidocr direction": ("rapidocr-onnxruntime", "ch_ppocr_mobile_v2.0_cls_infer.onnx"),
    "rxnmap": ("chython-rxnmap", "rxnmap.onnx"),
}


def bert(path: Path) -> None:
    """A small random BERT as torch exports it, its weights in a second file."""
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    shape = {"vocab_size": 500, "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = BertConfig(**shape, intermediate_size=256, max_position_embeddings=64, attn_implementation="eager")
    inputs = (torch.randint(0, 500, (2, 12)), torch.ones(2, 12, dtype=torch.long))
    torch.onnx.export(BertModel(config).eval(), inputs, str(path), input_names=["input_ids", "attention_mask"],
                      dynamo=True, opset_version=18, verbose=False)  # fmt: skip


def models(folder: Path) -> None:
    for name, (package, file) in PACKAGED.items():
        (found,) = [f for f in files(package) or () if f.name == file]
        (folder / f"{name}.onnx").write_bytes(found.locate().read_bytes())
    bert(folder / "bert.onnx")


def text(width: int, height: int) -> np.ndarray:
    """A picture of a line of text, from -1 to 1."""
    from PIL import Image, ImageDraw, ImageFont

    picture = Image.new("RGB", (width, height), "white")
    ImageDraw.Draw(picture).text((6, 4), "The quick brown fox", fill="black", font=ImageFont.load_default(height - 16))
    return (np.asarray(picture, np.float32).transpose(2, 0, 1)[None] / 255 - 0.5) / 0.5


def inputs(name: str, session: onnxruntime.InferenceSession) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    if name.startswith("silero"):
        sound = 0.1 * np.sin(np.arange(576) * 0.05) * rng.normal(1, 0.1, 576)
        return {"input": sound[None].astype(np.float32), "state": np.zeros((2, 1, 128), np.float32),
                "sr": np.array(16000)}  # fmt: skip
    if name.startswith("rapidocr"):
        width, height = {"rapidocr recognition": (320, 48), "rapidocr detection": (320, 64)}.get(name, (192, 48))
        return {session.get_inputs()[0].name: text(width, height)}
    made: dict[str, np.ndarray] = {}
    for i in session.get_inputs():
        shape = [d if isinstance(d, int) else 12 for d in i.shape]
        made[i.name] = np.ones(shape, np.int64) if "mask" in i.name else rng.integers(0, 4, shape)
        made[i.name] = made[i.name].astype({"tensor(int32)": np.int32, "tensor(float)": np.float32}.get(i.type, "i8"))
    return made


def session(model: onnx.ModelProto | str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    content = model if isinstance(model, str) else model.SerializeToString()
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def graphs(graph: onnx.GraphProto, prefix: str = "") -> Iterator[tuple[str, onnx.GraphProto]]:
    """A graph and those in its nodes, with what the names of their tensors begin with."""
    yield prefix, graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from graphs(attribute.g, f"{prefix}{node.output[0]}/{attribute.name}/")


def in_out(graph: onnx.GraphProto) -> set[str]:
    """Names of matrices that products of a graph take as [in, out]."""
    behind = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Identity"}
    found = set()
    for node in graph.node:
        turned = any(a.name == "transB" and a.i for a in node.attribute)
        if node.op_type == "MatMul" or (node.op_type == "Gemm" and not turned):
            name = node.input[1]
            while name in behind:
                name = behind[name]
            found.add(name)
    return found


def decoded(model: onnx.ModelProto, weights: dict[str, np.ndarray], quantized: onnx.ModelProto) -> onnx.ModelProto:
    """The float model with other weights, by the names that quantcli lists. Those without codes are as they were."""
    codes = {t.name for _, graph in graphs(quantized.graph) for t in graph.initializer}
    done = set()
    for prefix, graph in graphs(model.graph):
        turned = in_out(graph)
        held = [(t.name, t) for t in graph.initializer]
        held += [(n.output[0], a.t) for n in graph.node if n.op_type == "Constant" for a in n.attribute
                 if a.name == "value"]  # fmt: skip
        for name, tensor in held:
            own = weights.get(prefix + name)
            if own is None or f"{name}_quantized" not in codes:
                continue
            own = own.T if own.ndim == 2 and name in turned else own
            assert own.shape == tuple(tensor.dims), name
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(own), tensor.name))
            done.add(prefix + name)
    assert done, "names that are not in the model"
    return model


def seen(job: dict[str, str]) -> dict[str, Any]:
    onnx.checker.check_model(job["quantized"])
    whole = session(job["float"])
    given = inputs(job["name"], whole)
    model = decoded(onnx.load(job["float"]), load_file(job["decoded"]), onnx.load(job["quantized"]))
    own = session(model).run(None, given)
    signal = noise = far = 0.0
    for a, b, c in zip(whole.run(None, given), session(job["quantized"]).run(None, given), own):
        if a.dtype.kind == "f":
            signal += float(np.square(a, dtype=np.float64).sum())
            noise += float(np.square(a - b, dtype=np.float64).sum())
            far = max(far, float(np.abs(b - c).max() / np.abs(c).max()))
    return {"name": job["name"], "outputs": 10 * np.log10(signal / noise), "far": far}


def main() -> None:
    warnings.filterwarnings("ignore")
    if sys.argv[1] == "models":
        models(Path(sys.argv[2]))
    else:
        for job in json.loads(Path(sys.argv[2]).read_text()):
            print(json.dumps(seen(job)))


if __name__ == "__main__":
    main()
