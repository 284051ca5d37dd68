"""A model directory becomes a Vlm, or one line that says why not."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fixtures_models import HIDDEN, MOSAIC, VOCAB, Handmade, write_model, write_vision
from mosaic_edge.models.frames import normalise, resize_area
from mosaic_edge.models.onnx.vlm import OnnxVlm
from mosaic_edge.models.vlm import ModelError, RopeSpec, Vlm
from uncut_decoder import NumpyMemory, flat_positions

TOOLS = Path(__file__).parents[3] / "tools" / "train_tiny"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "handmade")


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(whole, tmp_path / "model"))


@pytest.fixture(scope="module")
def vlm(whole: Path) -> OnnxVlm:
    return OnnxVlm.load(whole)


def passing(layer: int, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    return q


def test_the_spec_says_what_graphs_and_json_say(vlm: OnnxVlm) -> None:
    spec = vlm.spec
    assert isinstance(vlm, Vlm)
    assert (spec.name, spec.layers, spec.q_heads, spec.kv_heads, spec.head_dim) == ("handmade", 2, 4, 2, 16)
    assert (spec.hidden, spec.vocab_size, spec.embedding_dim) == (HIDDEN, VOCAB, 12)
    assert (spec.tokens_per_frame, spec.grid, spec.image_size) == (4, (2, 2), (8, 8))
    assert spec.rope == RopeSpec(16, 1e4) and spec.scale == pytest.approx(0.25)
    assert spec.image_mean == (0.5, 0.4, 0.3) and spec.image_std == (0.25, 0.2, 0.5)
    assert (spec.eos_token_ids, spec.video_window, spec.template) == ((1,), 4, "{question}")
    assert spec.kv_bytes_per_token == 2 * 2 * 16 * 2 * 2


def test_a_frame_becomes_what_the_encoder_says_of_its_pixels(vlm: OnnxVlm, whole: Path) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    made = vlm.encode(frame, 0.0, 0.0, 0)
    tokens, embedding = made.tokens, made.embedding
    pixels = (frame / 255.0 - MOSAIC["image_mean"]) / MOSAIC["image_std"]
    session = ort.InferenceSession(
        str(whole / "onnx" / "vision_encoder.onnx"), providers=["CPUExecutionProvider"]
    )
    want = session.run(None, {"pixel_values": pixels.transpose(2, 0, 1)[None].astype(np.float32)})
    assert tokens.dtype == embedding.dtype == np.float32
    np.testing.assert_allclose(tokens, want[0][0], atol=1e-5)
    np.testing.assert_allclose(embedding, want[1][0], atol=1e-4)


def test_without_an_embedding_output_a_frame_is_the_mean_of_its_tokens(folder: Path) -> None:
    write_vision(folder / "onnx" / "vision_encoder.onnx", embedding=0)
    model = OnnxVlm.load(folder)
    made = model.encode(np.full((5, 7, 3), 200, np.uint8), 0.0, 0.0, 0)
    assert model.spec.embedding_dim == HIDDEN
    np.testing.assert_allclose(made.embedding, made.tokens.mean(0), atol=1e-6)


@pytest.mark.parametrize(
    "frame", [np.zeros((8, 8, 3), np.float32), np.zeros((8, 8), np.uint8), np.zeros((0, 8, 3), np.uint8)]
)
def test_what_is_no_frame_is_refused(vlm: OnnxVlm, frame: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"uint8 \[H, W, 3\], got"):
        vlm.encode(frame, 0.0, 0.0, 0)


def test_text_goes_to_tokens_and_back_and_unknown_words_are_named(vlm: OnnxVlm) -> None:
    ids = vlm.tokenize("What colour was the ball?")
    assert ids == [4, 5, 6, 7, 8, 9]
    assert vlm.detokenize([*ids, 1]) == "what colour was the ball ?"
    assert vlm.embed_text(ids).shape == (6, HIDDEN)
    with pytest.raises(
        ValueError, match=r"unknown word 'zebra'; known words: what colour was the ball \? red green$"
    ):
        vlm.tokenize("what zebra")
    with pytest.raises(ValueError, match="token id 96 is outside the vocabulary of 96"):
        vlm.embed_text([3, 96])


def test_the_decoder_runs_with_and_without_logits(vlm: OnnxVlm) -> None:
    embeds = vlm.embed_text([4, 5, 6])
    logits = vlm.forward(embeds, passing)
    assert logits is not None and logits.shape == (VOCAB,)
    assert vlm.forward(embeds, passing, want_logits=False) is None
    with pytest.raises(ValueError, match=r"embeds must be \[T >= 1, hidden\]"):
        vlm.forward(embeds[:0], passing)
    with pytest.raises(ValueError, match=r"attend of layer 0 must return \(3, 4, 16\)"):
        vlm.forward(embeds, lambda layer, q, k, v: q[:1])


def test_the_best_variant_is_chosen_and_another_can_be_asked_for(folder: Path) -> None:
    onnx.save(Handmade(layers=3).build(), folder / "onnx" / "decoder_model_merged_fp16.onnx")
    assert OnnxVlm.load(folder).spec.layers == 2
    assert OnnxVlm.load(folder, variant="fp16").spec.layers == 3
    with pytest.raises(ModelError, match=r"no decoder; looked for decoder_model_merged_int8\.onnx"):
        OnnxVlm.load(folder, variant="int8")


def test_files_may_lie_without_an_onnx_folder_and_json_may_be_the_standard_one(folder: Path) -> None:
    for path in (folder / "onnx").iterdir():
        path.rename(folder / path.name)
    (folder / "mosaic.json").unlink()
    (folder / "config.json").write_text(
        json.dumps({"eos_token_id": [1, 3], "text_config": {"rope_theta": 1e4}})
    )
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.1] * 3, "image_std": [0.2] * 3})
    )
    spec = OnnxVlm.load(folder).spec
    assert spec.eos_token_ids == (1, 3) and spec.image_mean == (0.1, 0.1, 0.1) and spec.grid == (2, 2)


def refusal(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        OnnxVlm.load(folder)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700
    return str(caught.value)


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("onnx/decoder_model_merged_q4.onnx", "no decoder; looked for decoder_model_merged{_q4,"),
        ("onnx/vision_encoder.onnx", "no vision encoder; looked for vision_encoder{,"),
        ("onnx/embed_tokens.onnx", "no token embedding; looked for embed_tokens{,"),
        ("tokenizer.json", "no tokenizer; looked for tokenizer.json"),
        ("mosaic.json", "no eos_token_id in mosaic.json"),
    ],
)
def test_a_missing_file_is_named(folder: Path, missing: str, said: str) -> None:
    (folder / missing).unlink()
    assert f"{folder}: {said}" in refusal(folder)


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    assert refusal(tmp_path / "nowhere") == f"{tmp_path / 'nowhere'}: no such model directory"


@pytest.mark.parametrize("name", ["decoder_model_merged_q4", "vision_encoder", "embed_tokens"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
def test_a_truncated_graph_is_named(folder: Path, name: str, share: float) -> None:
    path = folder / "onnx" / f"{name}.onnx"
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    message = refusal(folder)
    assert message.startswith(str(path)) and "truncated" in message


def test_a_truncated_tokenizer_and_json_are_named(folder: Path) -> None:
    text = (folder / "mosaic.json").read_text()
    (folder / "mosaic.json").write_text(text[:20])
    assert "mosaic.json: not readable as JSON" in refusal(folder)
    (folder / "mosaic.json").write_text(text)
    path = folder / "tokenizer.json"
    path.write_text(path.read_text()[:50])
    assert "tokenizer.json: not a readable tokenizer" in refusal(folder)


def test_missing_and_short_external_data_are_named(folder: Path) -> None:
    path = folder / "onnx" / "decoder_model_merged_q4.onnx"
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="weights.data", size_threshold=256)
    assert OnnxVlm.load(folder).spec.layers == 2
    data = path.parent / "weights.data"
    data.write_bytes(data.read_bytes()[:-100])
    assert "truncated" in refusal(folder) and "weights.data" in refusal(folder)
    data.unlink()
    assert refusal(folder) == f"{path}: its external data weights.data is missing"


def test_an_unsupported_operator_is_named_with_its_file(folder: Path) -> None:
    path = folder / "onnx" / "decoder_model_merged_q4.onnx"
    model = onnx.load(path)
    next(n for n in model.graph.node if n.name == "/attention.1").op_type = "SparseAttention"
    onnx.save(model, path)
    assert f"{path}: com.microsoft.SparseAttention '/attention.1'" in refusal(folder)
    model = onnx.load(path)
    next(n for n in model.graph.node if n.name == "/attention.1").op_type = "GroupQueryAttention"
    next(n for n in model.graph.node if n.name == "/sigmoid.1").op_type = "NoSuchOperator"
    onnx.save(model, path)
    assert str(path) in refusal(folder) and "NoSuchOperator" in refusal(folder)


def test_json_that_contradicts_the_graphs_is_refused(folder: Path) -> None:
    (folder / "mosaic.json").write_text(json.dumps(MOSAIC | {"tokens_per_frame": 16, "grid": [4, 4]}))
    assert "mosaic.json says 16 tokens a frame, the vision encoder gives 4" in refusal(folder)
    (folder / "mosaic.json").write_text(json.dumps(MOSAIC | {"grid": [4, 4]}))
    assert "a grid of 4 x 4" in refusal(folder)


def test_runs_are_repeatable_to_the_bit(vlm: OnnxVlm) -> None:
    embeds = vlm.embed_text([4, 5, 6, 7])
    np.testing.assert_array_equal(vlm.forward(embeds, passing), vlm.forward(embeds, passing))


def test_loading_and_running_say_nothing(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    OnnxVlm.load(folder).forward(np.ones((2, HIDDEN), np.float32), passing)
    assert capfd.readouterr() == ("", "")


def area_oracle(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    """Every output pixel: the integral of the piecewise-constant image over its rectangle, by plain loops."""
    source_height, source_width = frame.shape[:2]
    out = np.zeros((height, width, 3))
    for i in range(height):
        for j in range(width):
            top, bottom = i * source_height / height, (i + 1) * source_height / height
            left, right = j * source_width / width, (j + 1) * source_width / width
            for y in range(source_height):
                for x in range(source_width):
                    tall = max(0.0, min(bottom, y + 1) - max(top, y))
                    wide = max(0.0, min(right, x + 1) - max(left, x))
                    out[i, j] += tall * wide * frame[y, x]
            out[i, j] /= (bottom - top) * (right - left)
    return out


@settings(max_examples=25, deadline=None)
@given(st.tuples(*[st.integers(1, 17)] * 2), st.tuples(*[st.integers(1, 9)] * 2), st.integers(0, 99))
def test_resizing_is_the_mean_over_each_pixels_area(
    source: tuple[int, int], target: tuple[int, int], seed: int
) -> None:
    frame = np.random.default_rng(seed).integers(0, 256, (*source, 3), np.uint8)
    np.testing.assert_allclose(resize_area(frame, *target), area_oracle(frame, *target), atol=1e-3)


def test_resizing_large_frames_keeps_the_mean_and_strides_do_not_matter() -> None:
    frame = np.random.default_rng(1).integers(0, 256, (480, 854, 3), np.uint8)
    small = resize_area(frame, 48, 48)
    np.testing.assert_allclose(small.mean((0, 1)), frame.mean((0, 1)), atol=1e-2)
    mirrored = frame[:, ::-1]
    np.testing.assert_allclose(resize_area(mirrored, 48, 48), small[:, ::-1], atol=1e-3)
    pixels = normalise(small, (0.5, 0.4, 0.3), (0.25, 0.2, 0.5))
    assert pixels.shape == (1, 3, 48, 48) and pixels.flags.c_contiguous and pixels.dtype == np.float32
    np.testing.assert_allclose(
        pixels[0].transpose(1, 2, 0), (small / 255 - [0.5, 0.4, 0.3]) / [0.25, 0.2, 0.5], atol=1e-5
    )


def test_nothing_here_imports_torch(whole: Path) -> None:
    import subprocess

    code = f"import sys; from mosaic_edge.models.onnx.vlm import OnnxVlm; OnnxVlm.load({str(whole)!r}); "
    code += "assert not {'torch', 'transformers'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0


def test_an_exported_checkpoint_says_what_torch_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch", reason="export needs the dev extra")
    monkeypatch.syspath_prepend(str(TOOLS))
    import export
    import layout

    torch.manual_seed(3)
    model = layout.build_model(hidden=64, layers=2, vision_hidden=32, vision_layers=1).eval()
    for parameter in model.parameters():
        parameter.data += 0.15 * torch.randn_like(
            parameter
        )  # norms too, so that none is mistaken for nothing
    layout.save(model, tmp_path / "float")
    export.export(tmp_path / "float", tmp_path / "onnx_model", precision="fp32", check=False)
    vlm = OnnxVlm.load(tmp_path / "onnx_model")
    frame = np.random.default_rng(0).integers(0, 256, (48, 48, 3), np.uint8)
    made = vlm.encode(frame, 0.0, 0.0, 0)
    tokens, embedding = made.tokens, made.embedding
    pixels = torch.from_numpy(normalise(frame.astype(np.float32), vlm.spec.image_mean, vlm.spec.image_std))
    with torch.inference_mode():
        features = export.image_features(model, pixels)
        mean = (
            model.model.vision_tower(pixel_values=pixels, output_hidden_states=True).hidden_states[-1].mean(1)
        )
        embeds = torch.cat(
            [features[0], model.get_input_embeddings()(torch.tensor(vlm.tokenize("what ball ?")))]
        )
        want = model.lm_head(model.model.language_model(inputs_embeds=embeds[None]).last_hidden_state)[0, -1]
    # The encoder's weights are stored in float16: 5e-4 of the largest number, here about 10.
    np.testing.assert_allclose(tokens, features[0], atol=2e-2)
    np.testing.assert_allclose(embedding, mean[0], atol=2e-2)
    memory = NumpyMemory(vlm._decoder)
    for block in (tokens, vlm.embed_text(vlm.tokenize("what ball ?"))):
        memory.begin(flat_positions(len(memory.positions), len(block)))
        logits = vlm.forward(block, memory.attend)
    assert np.ptp(want.numpy()) > 2
    np.testing.assert_allclose(logits, want, atol=5e-2)
