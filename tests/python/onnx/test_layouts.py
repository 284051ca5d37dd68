"""Model directories as exporters lay them out: what is chosen, what a graph's signature tells, what is
refused.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from exported_models import Exporter
from fixtures_models import HIDDEN, MOSAIC, Handmade, write_model
from mosaic_edge import Engine, _core
from mosaic_edge.cli import app
from mosaic_edge.models.onnx import cut_cache
from mosaic_edge.models.onnx.files import VARIANTS, ModelFiles
from mosaic_edge.models.onnx.pooling import halved
from mosaic_edge.models.onnx.vlm import OnnxVlm
from mosaic_edge.models.vlm import ModelError
from videos import MakeVideo

Copy = Callable[..., Path]


@pytest.fixture
def copy(exporter: Exporter, tmp_path: Path) -> Copy:
    """copy(kind, layout, precision): an exported model to damage."""

    def make(*key: str) -> Path:
        return Path(shutil.copytree(exporter(*key), tmp_path / "model"))

    return make


@pytest.fixture
def handmade(tmp_path: Path) -> Path:
    return write_model(tmp_path / "handmade")


def refusal(folder: Path, **options: Any) -> str:
    with pytest.raises(ModelError) as caught:
        OnnxVlm.load(folder, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_first_variant_of_the_table_that_is_there_is_chosen(tmp_path: Path, device: str) -> None:
    (tmp_path / "onnx").mkdir()
    (tmp_path / "tokenizer.json").touch()
    stems = {
        "decoder": "decoder_model_merged",
        "vision encoder": "vision_encoder",
        "token embedding": "embed_tokens",
    }
    wanted = {"cpu": ["q4", "int8", "q4f16", ""], "cuda": ["q4f16", "fp16", "q4", ""]}[device]
    order = VARIANTS[device]["decoder"]
    assert [order.index(v) for v in wanted] == sorted(order.index(v) for v in wanted)

    def path(part: str, variant: str) -> Path:
        return tmp_path / "onnx" / f"{stems[part]}{variant and '_'}{variant}.onnx"

    for part, variants in VARIANTS[device].items():
        for variant in variants:
            path(part, variant).touch()
    for n in range(min(map(len, VARIANTS[device].values()))):
        files = ModelFiles.find(tmp_path, device=device)
        for part, chosen in zip(stems, (files.decoder, files.vision, files.embeddings), strict=True):
            assert chosen == path(part, VARIANTS[device][part][n])
        asked = ModelFiles.find(tmp_path, variant=order[-1], device=device)
        assert asked.decoder == path("decoder", order[-1])
        for part in stems:
            path(part, VARIANTS[device][part][n]).unlink()


def test_a_variant_that_is_not_there_is_refused_with_what_is(copy: Copy) -> None:
    folder = copy("llava")
    message = refusal(folder, variant="bnb4")
    assert f"{folder}: no decoder; looked for decoder_model_merged_bnb4.onnx" in message
    assert message.endswith("there are decoder_model_merged.onnx, embed_tokens.onnx, vision_encoder.onnx")
    with pytest.raises(ValueError, match="device='tpu': there are cpu, cuda"):
        OnnxVlm.load(folder, device="tpu")
    message = refusal(folder, device="cuda")
    assert 'device="cuda" needs onnxruntime-gpu' in message and "CPUExecutionProvider" in message


@pytest.mark.parametrize("part", ["decoder", "vision", "embedding"])
def test_a_file_that_genai_config_names_and_is_missing_is_named(copy: Copy, part: str) -> None:
    folder = copy("llava", "genai", "int4")
    assert OnnxVlm.load(folder).spec.layers == 3
    config = json.loads((folder / "genai_config.json").read_text())
    name = config["model"][part]["filename"]
    (folder / name).unlink()
    assert f"{folder}: genai_config.json names {name}" in refusal(folder)
    config["model"][part] = {"pipeline": [{"one": {}}]}
    (folder / "genai_config.json").write_text(json.dumps(config))
    assert f"genai_config.json runs its {part} as a pipeline" in refusal(folder)


def test_missing_and_short_external_data_of_a_real_export_are_named(copy: Copy) -> None:
    folder = copy("llava", "genai", "int4")
    data = folder / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:-100])
    assert f"{data}: external data of" in refusal(folder) and "truncated" in refusal(folder)
    data.unlink()
    assert refusal(folder) == f"{folder / 'model.onnx'}: its external data model.onnx.data is missing"


def test_a_graph_that_this_onnxruntime_is_too_old_for_is_refused_with_its_version(handmade: Path) -> None:
    import onnxruntime

    path = handmade / "onnx" / "decoder_model_merged_q4.onnx"
    model = onnx.load(path)
    model.opset_import[0].version = 99
    onnx.save(model, path)
    message = refusal(handmade)
    assert (
        message.startswith(str(path)) and f"onnxruntime {onnxruntime.__version__} cannot load it" in message
    )


@pytest.mark.parametrize(
    ("kind", "size"), [("qwen2.5-vl", (57, 83)), ("qwen2.5-vl", (301, 77)), ("qwen3-vl", (65, 130))]
)
def test_a_frames_tokens_are_those_of_the_transformers_model(
    exporter: Exporter, kind: str, size: tuple[int, int]
) -> None:
    torch = pytest.importorskip("torch", reason="the exported model is the oracle")
    vlm = OnnxVlm.load(exporter(kind), tokens_per_frame=20)
    frame = np.random.default_rng(1).integers(0, 256, (*size, 3), np.uint8)
    made = vlm.encode(frame, 0.0, 0.0, 0)
    tokens, embedding = made.tokens, made.embedding
    model = exporter.model(kind)
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    patch = model.config.vision_config.patch_size
    taken = {"min_pixels": 4 * patch**2, "max_pixels": vlm.spec.tokens_per_frame * 4 * patch**2}
    theirs = Qwen2VLImageProcessorPil(patch_size=patch, **taken)(frame, return_tensors="pt")
    with torch.no_grad():
        want = model.model.visual(theirs["pixel_values"], theirs["image_grid_thw"]).pooler_output.numpy()
    assert len(tokens) <= 20 and np.ptp(want) > 0.5
    # Of noise, the worst of pictures: Pillow 13 resizes the axes in another order.
    np.testing.assert_allclose(tokens, want, atol=0.02 * np.abs(want).max())
    np.testing.assert_allclose(embedding, want.mean(0), atol=0.02 * np.abs(want).max())
    rows, columns = theirs["image_grid_thw"][0, 1:].numpy() // 2
    assert made.columns == columns and len(made.tokens) == rows * columns


@pytest.mark.parametrize("policy", [name for name in _core.policies() if name != "full"])
def test_frames_of_any_aspect_go_through_a_small_cap_without_a_breach(
    exporter: Exporter, policy: str
) -> None:
    engine = Engine.load(exporter("qwen2.5-vl", "genai", "int4", "accuracy_level=1"), tokens_per_frame=12)
    rng = np.random.default_rng(0)
    with engine.session(memory="384KiB", policy=policy) as session:
        for i in range(120):
            height, width = rng.integers(30, 200, 2)
            session.append(rng.integers(0, 256, (height, width, 3), np.uint8), float(i))
            if i % 30 == 29:
                assert np.isfinite(session.ask("w5 w6 w7").logits).all()
                session.check_invariants()
        stats = session.memory()
        assert stats["taken_bytes"] <= 384 << 10 and stats["tokens"]["seen"] > 120 * engine.spec.layers


def test_a_real_model_runs_from_the_command_line(
    exporter: Exporter, make_video: MakeVideo, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, video = exporter("llava", "genai", "int4"), make_video("a.mp4")
    arguments = [
        "run",
        "--model",
        str(folder),
        "--source",
        str(video),
        "--ask",
        "w5 w6",
        "--memory",
        "512KiB",
    ]
    app([*arguments, "--fps", "10", "--json"], standalone_mode=False)
    said = json.loads(capsys.readouterr().out)
    assert said["frames"] == 20 and said["answers"][0]["question"] == "w5 w6" and said["error"] is None
    assert said["memory"]["taken_bytes"] <= 512 << 10


def test_a_large_decoder_is_cut_once(copy: Copy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = copy("qwen2.5-vl", "genai", "int4")
    monkeypatch.setenv("MOSAIC_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(cut_cache, "LEAST_BYTES", 0)
    first = OnnxVlm.load(folder)
    assert len(list((tmp_path / "cache" / "cuts").iterdir())) == 1
    monkeypatch.setattr(cut_cache, "cut", None)
    second = OnnxVlm.load(folder)
    embeds = first.embed_text([5, 6, 7])
    assert second.spec == first.spec
    runs = [vlm.forward(embeds, lambda layer, q, k, v: q) for vlm in (first, second)]
    np.testing.assert_array_equal(*runs)


def rewrite(path: Path, change: Callable[[onnx.GraphProto], None]) -> None:
    model = onnx.load(path)
    change(model.graph)
    onnx.save(model, path)


def test_pictures_in_a_row_and_their_mask_are_one_frame(handmade: Path) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (9, 11, 3), np.uint8)
    want = OnnxVlm.load(handmade).encode(frame, 0.0, 0.0, 0)

    def in_a_row(graph: onnx.GraphProto) -> None:
        value = helper.make_tensor_value_info
        pixels = value("pixel_values", TensorProto.FLOAT, ["batch", "pictures", 3, 8, 8])
        mask = value("pixel_attention_mask", TensorProto.BOOL, ["batch", "pictures", 8, 8])
        del graph.input[:]
        graph.input.extend([pixels, mask])
        cast = helper.make_node("Cast", ["pixel_attention_mask"], ["kept"], to=TensorProto.FLOAT)
        axis = numpy_helper.from_array(np.array([2], np.int64), "axis2")
        graph.initializer.append(axis)
        wide = helper.make_node("Unsqueeze", ["kept", "axis2"], ["wide"])
        product = helper.make_node("Mul", ["pixel_values", "wide"], ["shown"])
        graph.node[0].input[0] = "shown"
        for node in (product, wide, cast):
            graph.node.insert(0, node)

    rewrite(handmade / "onnx" / "vision_encoder.onnx", in_a_row)
    got = OnnxVlm.load(handmade).encode(frame, 0.0, 0.0, 0)
    np.testing.assert_array_equal(got.tokens, want.tokens)
    np.testing.assert_array_equal(got.embedding, want.embedding)


@pytest.mark.parametrize("side", [1, 2, 5, 7, 13, 27])
def test_a_square_of_tokens_is_halved_as_torch_interpolates(side: int) -> None:
    tokens = np.random.default_rng(side).standard_normal((side * side, 6)).astype(np.float32)
    square = torch.from_numpy(tokens).T.reshape(1, 6, side, side)
    size = [-(-side // 2)] * 2
    want = torch.nn.functional.interpolate(square, size=size, mode="bilinear").reshape(6, -1).T.numpy()
    np.testing.assert_allclose(halved(tokens), want, atol=1e-5)


def test_frames_of_llava_onevision_are_pooled_behind_its_encoder(handmade: Path) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (9, 11, 3), np.uint8)
    whole = OnnxVlm.load(handmade).encode(frame, 0.0, 0.0, 0)
    (handmade / "config.json").write_text(json.dumps({"model_type": "llava_onevision"}))
    (handmade / "mosaic.json").write_text(json.dumps(MOSAIC | {"tokens_per_frame": 1, "grid": [1, 1]}))
    pooled = OnnxVlm.load(handmade)
    made = pooled.encode(frame, 0.0, 0.0, 0)
    assert (len(whole.tokens), len(made.tokens), pooled.spec.tokens_per_frame) == (4, 1, 1)
    np.testing.assert_allclose(made.tokens[0], whole.tokens.mean(axis=0), atol=1e-6)


def test_an_embedding_graph_that_also_takes_features_gets_none(handmade: Path) -> None:
    want = OnnxVlm.load(handmade).embed_text([4, 5])

    def with_features(graph: onnx.GraphProto) -> None:
        graph.input.append(helper.make_tensor_value_info("image_features", TensorProto.FLOAT, ["n", HIDDEN]))
        total = helper.make_node("ReduceSum", ["image_features"], ["total"], keepdims=0)
        graph.node[0].output[0] = "text"
        graph.node.extend([total, helper.make_node("Add", ["text", "total"], ["inputs_embeds"])])

    rewrite(handmade / "onnx" / "embed_tokens.onnx", with_features)
    np.testing.assert_array_equal(OnnxVlm.load(handmade).embed_text([4, 5]), want)


def test_a_vision_signature_that_is_not_understood_is_refused_with_its_inputs(
    handmade: Path, copy: Copy
) -> None:
    path = handmade / "onnx" / "vision_encoder.onnx"

    def strange(graph: onnx.GraphProto) -> None:
        graph.input.append(helper.make_tensor_value_info("aspect_ratio_ids", TensorProto.INT64, ["batch", 1]))

    rewrite(path, strange)
    assert "aspect_ratio_ids ['batch', 1] tensor(int64)" in refusal(handmade)
    folder = copy("qwen2.5-vl")
    vision = folder / "onnx" / "vision_encoder.onnx"
    said = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(said | {"patch_size": 16}))
    assert (
        f"{vision}: takes patches of 1176 numbers; preprocessor_config.json gives 3 x 2 x 16 x 16 = 1536"
        in refusal(folder)
    )
    (folder / "preprocessor_config.json").write_text(json.dumps(said | {"merge_size": 1}))
    assert "patch_size 14, merge_size 1" in refusal(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(said))
    with pytest.raises(ValueError, match="tokens_per_frame must be 1 or more, got 0"):
        OnnxVlm.load(folder, tokens_per_frame=0)

    def deep(graph: onnx.GraphProto) -> None:
        graph.node.append(helper.make_node("Identity", [graph.output[0].name], ["deepstack_features"]))
        graph.output.append(helper.make_tensor_value_info("deepstack_features", TensorProto.FLOAT, None))

    rewrite(vision, deep)
    assert "gives deepstack_features" in refusal(folder)


def test_a_bound_on_tokens_is_refused_where_frames_have_one_size(handmade: Path) -> None:
    assert "its frames have one size; tokens_per_frame= cannot change it" in refusal(
        handmade, tokens_per_frame=9
    )


def test_what_mosaic_json_says_goes_before_the_preprocessor(handmade: Path) -> None:
    (handmade / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.1] * 3, "resample": 2}))
    (handmade / "mosaic.json").write_text(json.dumps(MOSAIC | {"image_mean": 0.25}))
    assert OnnxVlm.load(handmade).spec.image_mean == (0.25, 0.25, 0.25)


def test_a_decoder_made_of_a_newer_form_of_attention_is_refused_by_name(handmade: Path) -> None:
    path = handmade / "onnx" / "decoder_model_merged_q4.onnx"
    model = Handmade().build()
    next(n for n in model.graph.node if n.name == "/attention.1").op_type = "PagedAttention"
    onnx.save(model, path)
    assert (
        f"{path}: com.microsoft.PagedAttention '/attention.1': this attention operator cannot be cut"
        in refusal(handmade)
    )
