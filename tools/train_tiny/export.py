"""Export a LLaVA-layout checkpoint (SigLIP tower, MLP projector, Qwen2 decoder) to the standard ONNX layout.

    python tools/train_tiny/export.py CHECKPOINT OUT [--precision int4|fp32|fp16] [--no-check]

    OUT/onnx/vision_encoder.onnx       pixel_values [B,3,H,W] -> image_features [B,T,d], frame_embedding [B,E]
    OUT/onnx/embed_tokens.onnx         input_ids [B,S] -> inputs_embeds [B,S,d]
    OUT/onnx/decoder_model_merged_q4.onnx  by onnxruntime-genai's builder: embeddings outside
    OUT/tokenizer.json config.json mosaic.json genai_config.json ...

Every file is self-contained. The script ends by comparing torch in float with what was written.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import TensorProto, numpy_helper
from transformers import LlavaForConditionalGeneration, Qwen2ForCausalLM

# The uncut decoder's rotary tables are as long as this; the cut one computes its own and has no such limit.
TABLE_POSITIONS = 4096
# Weights round to nearest in symmetric blocks of 32, as the end of training does with a straight-through
# gradient (model.py, FakeInt4). Level 1 keeps activations in float32: at the builder's default, 4, they are
# rounded to int8, which turns a difference of 1e-7 between attention kernels into one of 0.05 on the logits.
BUILDER_OPTIONS = ("accuracy_level=1",)
SUFFIX = {"int4": "_q4", "fp32": "", "fp16": "_fp16"}
COPIED = ("config.json", "mosaic.json", "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json")


class VisionEncoder(torch.nn.Module):
    """Tower and projector; the frame embedding is the mean of the tower's tokens.

    LLaVA projects the last hidden state of the tower's encoder, before its post_layernorm.
    """

    def __init__(self, model: LlavaForConditionalGeneration) -> None:
        super().__init__()
        config = model.config
        if config.vision_feature_layer != -1 or config.vision_feature_select_strategy != "full":
            raise ValueError(
                "only vision_feature_layer=-1 with strategy 'full' is exported, "
                f"got {config.vision_feature_layer} with {config.vision_feature_select_strategy!r}"
            )
        self.tower = model.model.vision_tower
        self.projector = model.model.multi_modal_projector

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """pixel_values [B, 3, H, W] -> image features [B, T, d], frame embedding [B, E]."""
        tokens = self.tower.encoder(inputs_embeds=self.tower.embeddings(pixel_values)).last_hidden_state
        return self.projector(tokens), tokens.mean(dim=1)


def image_features(model: LlavaForConditionalGeneration, pixel_values: torch.Tensor) -> torch.Tensor:
    """What transformers itself feeds the decoder for these images: [B, T, d]."""
    features = model.model.get_image_features(pixel_values=pixel_values, return_dict=True).pooler_output
    return torch.stack(list(features))


def export(checkpoint: Path, out: Path, precision: str = "int4", check: bool = True) -> Path:
    """Write the whole layout and swap it in. Returns `out`."""
    model = LlavaForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    (part / "onnx").mkdir(parents=True)
    _export_vision(model, part / "onnx" / "vision_encoder.onnx")
    _export_embeddings(model, part / "onnx" / "embed_tokens.onnx")
    decoder = part / "onnx" / f"decoder_model_merged{SUFFIX[precision]}.onnx"
    genai = export_decoder(text_model(model), checkpoint, decoder, precision)
    for name in COPIED:
        if (checkpoint / name).exists():
            shutil.copyfile(checkpoint / name, part / name)
    config = json.loads(genai)
    config["model"]["decoder"]["filename"] = f"onnx/{decoder.name}"
    (part / "genai_config.json").write_text(json.dumps(config, indent=2) + "\n")
    if check:
        compare(model, part)
    old = out.with_name(out.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    part.rename(out)
    shutil.rmtree(old, ignore_errors=True)
    return out


def text_model(model: LlavaForConditionalGeneration) -> Qwen2ForCausalLM:
    """The decoder as a language model of its own, sharing nothing but numbers."""
    config = model.config.text_config
    config.architectures = ["Qwen2ForCausalLM"]
    config.max_position_embeddings = TABLE_POSITIONS
    text = Qwen2ForCausalLM(config)
    text.model.load_state_dict(model.model.language_model.state_dict())
    text.lm_head.load_state_dict(model.lm_head.state_dict())
    return text.eval()


def export_decoder(text: torch.nn.Module, tokenizer: Path, path: Path, precision: str, *options: str) -> str:
    """Run onnxruntime-genai's model builder offline on `text`; one file at `path`. Returns its
    genai_config.json.
    """
    with tempfile.TemporaryDirectory() as temporary:
        source, built = Path(temporary, "source"), Path(temporary, "built")
        text.save_pretrained(source)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(tokenizer / name, source / name)
        command = [
            sys.executable,
            "-m",
            "onnxruntime_genai.models.builder",
            "-m",
            "local",
            "-i",
            str(source),
            "-o",
            str(built),
        ]
        command += ["-p", precision, "-e", "cpu", "-c", str(Path(temporary, "cache"))]
        command += ["--extra_options", "exclude_embeds=true", "hf_token=false", *BUILDER_OPTIONS, *options]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(
                f"the model builder failed ({done.returncode}): {(done.stderr or done.stdout)[-2000:]}"
            )
        onnx.save(
            onnx.load(built / "model.onnx"), path
        )  # loading gathers the external data; saving keeps it inside
        return (built / "genai_config.json").read_text()


def _export_vision(model: LlavaForConditionalGeneration, path: Path) -> None:
    vision = model.config.vision_config
    example = torch.zeros(2, vision.num_channels, vision.image_size, vision.image_size)
    _torch_export(
        VisionEncoder(model), example, path, "pixel_values", ("image_features", "frame_embedding"), ("batch",)
    )


def _export_embeddings(model: LlavaForConditionalGeneration, path: Path) -> None:
    example = torch.zeros(2, 3, dtype=torch.int64)
    _torch_export(
        model.get_input_embeddings(), example, path, "input_ids", ("inputs_embeds",), ("batch", "sequence")
    )


def _torch_export(
    module: torch.nn.Module,
    example: torch.Tensor,
    path: Path,
    name: str,
    outputs: tuple[str, ...],
    dynamic: tuple[str, ...],
) -> None:
    """torch.onnx with the leading axes dynamic, weights stored as float16 and widened on load."""
    logging.getLogger("torch.onnx").setLevel(
        logging.ERROR
    )  # it warns that torchvision, unused here, is missing
    shape = {i: torch.export.Dim(axis) for i, axis in enumerate(dynamic)}
    program = torch.onnx.export(
        module.eval(), (example,), input_names=[name], output_names=list(outputs), dynamic_shapes=(shape,),
        dynamo=True, opset_version=20, verbose=False,
    )  # fmt: skip
    assert program is not None
    program.save(str(path), external_data=False)
    graph = onnx.load(path)
    forget_where_it_was_made(graph)
    store_as_half(graph)
    onnx.checker.check_model(graph)
    onnx.save(graph, path)


def forget_where_it_was_made(model: onnx.ModelProto) -> None:
    """Remove stack traces and notes of the exporter: they name files of the machine it ran on."""
    del model.metadata_props[:]
    graph = model.graph
    for part in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        part.doc_string = ""
        del part.metadata_props[:]


def store_as_half(model: onnx.ModelProto, above: int = 1024) -> None:
    """Keep large float32 weights as float16 plus a Cast: half the bytes on disk, the arithmetic stays
    float32.

    ONNX Runtime folds the Cast when it opens the file.
    """
    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or np.prod(tensor.dims) <= above:
            continue
        name, half = tensor.name, numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(numpy_helper.from_array(half, f"{name}.half"))
        casts.append(
            onnx.helper.make_node("Cast", [f"{name}.half"], [name], name=f"{name}.cast", to=TensorProto.FLOAT)
        )
    rest = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*casts, *rest])


@torch.inference_mode()
def compare(model: LlavaForConditionalGeneration, folder: Path) -> dict[str, float]:
    """Largest differences between torch in float32 and the files in `folder`, on random input; printed and
    returned.
    """
    rng = np.random.default_rng(0)
    size = model.config.vision_config.image_size
    pixels = rng.standard_normal((2, 3, size, size)).astype(np.float32)
    ids = rng.integers(0, model.config.text_config.vocab_size, (2, 7))
    features = image_features(model, torch.from_numpy(pixels))
    embedding = VisionEncoder(model)(torch.from_numpy(pixels))[1]
    words = model.get_input_embeddings()(torch.from_numpy(ids))
    got_features, got_embedding = _run(folder, "vision_encoder", {"pixel_values": pixels})
    (got_words,) = _run(folder, "embed_tokens", {"input_ids": ids})
    embeds = torch.cat([features[:1], words[:1]], dim=1)
    logits = model.lm_head(model.model.language_model(inputs_embeds=embeds).last_hidden_state)[0].numpy()
    text = model.config.text_config
    past = np.zeros(
        (1, text.num_key_value_heads, 0, text.hidden_size // text.num_attention_heads), np.float32
    )
    feed = {"inputs_embeds": embeds.numpy(), "attention_mask": np.ones(embeds.shape[:2], np.int64)}
    feed |= {
        f"past_key_values.{i}.{kv}": past for i in range(text.num_hidden_layers) for kv in ("key", "value")
    }
    got_logits = _run(folder, "decoder_model_merged", feed)[0][0]
    report = {
        "image_features": _difference(features.numpy(), got_features),
        "frame_embedding": _difference(embedding.numpy(), got_embedding),
        "inputs_embeds": _difference(words.numpy(), got_words),
        "logits": _difference(logits, got_logits),
        "logits_range": float(np.ptp(logits)),
        "same_argmax": float((logits.argmax(-1) == got_logits.argmax(-1)).mean()),
    }
    for name, value in report.items():
        print(f"{name:16} {value:.3e}")
    sizes = {p.name: p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file()}
    for name, size in sizes.items():
        print(f"{size:9,d}  {name}")
    print(f"{sum(sizes.values()):9,d}  in all")
    return report


def _run(folder: Path, stem: str, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    (path,) = (folder / "onnx").glob(f"{stem}*.onnx")
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return list(session.run(None, feed))


def _difference(want: np.ndarray, got: np.ndarray) -> float:
    return float(np.abs(want - got).max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--precision", choices=tuple(SUFFIX), default="int4")
    parser.add_argument("--no-check", action="store_true", help="skip the comparison with torch")
    arguments = parser.parse_args()
    export(arguments.checkpoint, arguments.out, arguments.precision, not arguments.no_check)


if __name__ == "__main__":
    main()
