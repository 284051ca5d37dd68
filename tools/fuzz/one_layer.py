"""The embedded model with one layer in its decoder and one in its vision encoder, in both layouts: the same
files, keys, operators and checks at a quarter of the time to load. Its answers mean nothing.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import mosaic_edge.models

TINY = Path(mosaic_edge.models.__file__).parent / "tiny"


def write_one_layer(folder: Path, transformers: bool) -> Path:
    """Write it to `folder`, which is not there yet."""
    source = TINY / "float" if transformers else TINY
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("float", "__pycache__", "*.py"))
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= {"num_hidden_layers": 1, "layer_types": ["full_attention"]}
    config["vision_config"]["num_hidden_layers"] = 1
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    if transformers:
        _first_layers(folder / "model.safetensors")
        return folder
    genai = json.loads((folder / "genai_config.json").read_text())
    genai["model"]["decoder"]["num_hidden_layers"] = 1
    (folder / "genai_config.json").write_text(json.dumps(genai, indent=2))
    # What the last layer gives is taken from the first.
    before = {"/model/layers.3/": "/model/layers.0/"}
    _rewire(folder / "onnx/decoder_model_merged_q4.onnx", "/model/layers.4/", before)
    _rewire(folder / "onnx/vision_encoder.onnx", "", {"add_298": "add_108"})
    return folder


def _first_layers(weights: Path) -> None:
    import safetensors.torch

    tensors = safetensors.torch.load_file(weights)
    kept = {name: t for name, t in tensors.items() if ".layers." not in name or ".layers.0." in name}
    safetensors.torch.save_file(kept, weights, metadata={"format": "pt"})


def _rewire(path: Path, reader: str, names: dict[str, str]) -> None:
    """Nodes named `reader`... read other tensors; what nobody reads any more goes."""
    import onnx

    model = onnx.load(path)
    graph = model.graph
    for node in graph.node:
        if node.name.startswith(reader):
            for i, tensor in enumerate(node.input):
                for old, new in names.items():
                    node.input[i] = tensor.replace(old, new)
    kept = [o for o in graph.output if not o.name.startswith("present.") or o.name.startswith("present.0.")]
    read = {o.name for o in kept}
    nodes = []
    for node in reversed(graph.node):
        if read & set(node.output):
            nodes.append(node)
            read |= set(node.input)
    parts: tuple[tuple[str, list[Any]], ...] = (
        ("output", kept),
        ("node", nodes[::-1]),
        ("input", [i for i in graph.input if i.name in read]),
        ("initializer", [t for t in graph.initializer if t.name in read]),
        ("value_info", []),
    )
    for part, values in parts:
        values = [type(v).FromString(v.SerializeToString()) for v in values]
        graph.ClearField(part)
        getattr(graph, part).extend(values)
    path.write_bytes(model.SerializeToString())
