"""The cut decoder must say what the uncut one says, and refuse what it could not say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import transformers
from onnx import numpy_helper
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from fixtures_models import HIDDEN, Handmade, build_with_genai
from mosaic_edge.models.onnx.cut import cut
from mosaic_edge.models.onnx.decoder import CutDecoder
from mosaic_edge.models.onnx.sites import GraphCutError
from mosaic_edge.models.rope import recover_frequencies, recover_theta
from mosaic_edge.models.vlm import RopeSpec
from uncut_decoder import assert_same

Build = Callable[..., Path]


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Builds each genai fixture once: built(kind, precision, theta, *options) -> folder of model.onnx."""
    made: dict[tuple[object, ...], Path] = {}

    def build(*key: object) -> Path:
        if key not in made:
            kind, precision, theta, *options = key
            folder = tmp_path_factory.mktemp("genai")
            made[key] = build_with_genai(
                str(kind), folder, str(precision), float(str(theta)), *map(str, options)
            )
        return made[key]

    return build


def load(folder: Path) -> onnx.ModelProto:
    return onnx.load(folder / "model.onnx")


def test_packed_qwen2_with_rotary_inside_gives_the_uncut_logits(built: Build) -> None:
    graph = assert_same(load(built("qwen2", "fp32", 1e6)))
    facts = graph.facts
    assert (facts.layers, facts.q_heads, facts.kv_heads, facts.head_dim) == (3, 4, 2, 16)
    assert facts.rope == RopeSpec(16, 1e6) and facts.scale == pytest.approx(0.25)


def test_separate_qkv_of_another_theta_gives_the_uncut_logits(built: Build) -> None:
    graph = assert_same(load(built("qwen2", "fp32", 1e4, "fuse_qkv=false")))
    assert graph.facts.rope.theta == 1e4


def test_four_bit_qwen2_gives_the_uncut_logits(built: Build) -> None:
    model = load(built("qwen2", "int4", 1e6, "accuracy_level=1"))
    assert any(n.op_type == "MatMulNBits" for n in model.graph.node)
    assert_same(model)


def test_qwen3_keeps_its_qk_norm(built: Build) -> None:
    graph = assert_same(load(built("qwen3", "fp32", 1e6)), head=32)
    assert graph.facts.head_dim == 32
    assert sum(n.op_type == "SimplifiedLayerNormalization" for n in graph.segments[0].model.graph.node) == 3


def test_qwen25_vl_with_mrope_sections_gives_the_uncut_logits(built: Build) -> None:
    graph = assert_same(load(built("qwen2.5-vl", "fp32", 1e6)), multi=True)
    assert graph.facts.rope == RopeSpec(16, 1e6, "half", (2, 3, 3), False)


@pytest.mark.parametrize("form", ["gqa", "gqa-packed", "rows", "heads"])
@pytest.mark.parametrize("rotary", ["inside", "microsoft", "onnx", "none"])
def test_every_form_of_attention_and_rotary_gives_the_uncut_logits(form: str, rotary: str) -> None:
    if rotary == "inside" and not form.startswith("gqa"):
        rotary = "none"
    if form == "gqa-packed" and rotary in ("microsoft", "onnx"):
        with pytest.raises(GraphCutError, match="RotaryEmbedding"):
            cut(Handmade(form, rotary).build())
        return
    graph = assert_same(Handmade(form, rotary).build())
    assert graph.facts.rope.layout == ("none" if rotary == "none" else "half")


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(
    ("form", "rotary", "bias", "mask"),
    [
        ("mha", "microsoft", False, False),
        ("mha", "microsoft", False, True),
        ("mha", "none", True, False),
        ("mha", "none", True, True),
        ("projecting", "none", True, False),  # ONNX Runtime gives this one no mask beside a past
    ],
)
def test_attention_without_groups_gives_the_uncut_logits(
    form: str, rotary: str, bias: bool, mask: bool, half: bool
) -> None:
    made = Handmade(form, rotary, kv_heads=4, mask=mask, bias=bias, half=half)
    facts = assert_same(made.build(), tolerance=3e-2 if half else 1e-4).facts
    assert (facts.q_heads, facts.kv_heads, facts.head_dim) == (4, 4, 16)


@pytest.mark.parametrize("form", ["rows", "heads"])
def test_a_mask_that_is_causal_when_run_gives_the_uncut_logits(form: str) -> None:
    assert_same(Handmade(form, "onnx", mask=True).build())


@pytest.mark.parametrize(("form", "said"), [("mha", "attention_bias"), ("rows", "attn_mask")])
def test_a_mask_that_hides_more_than_the_future_is_refused(form: str, said: str) -> None:
    model = Handmade(form, "none", kv_heads=4, mask=True).build()
    next(n for n in model.graph.node if n.op_type == "Greater").op_type = "GreaterOrEqual"
    with pytest.raises(
        GraphCutError, match=rf"Attention '/attention\.0'.*{said} \('mask'\) is not the causal"
    ):
        cut(model)


@pytest.mark.parametrize("window", [9, 512, 4096, 32768])
def test_a_mask_that_is_a_long_window_is_refused(window: int) -> None:
    with pytest.raises(GraphCutError, match="not the causal mask: it is a window"):
        cut(Handmade("rows", "onnx", mask=True, window=window).build())


def test_what_these_forms_do_beyond_attention_is_refused_by_name() -> None:
    model = Handmade("mha", "none", kv_heads=4).build()
    attention(model).attribute[1].i = 0
    with pytest.raises(
        GraphCutError, match=r"MultiHeadAttention '/attention\.1': unidirectional=0 and no mask"
    ):
        cut(model)
    model = Handmade("projecting", "none", kv_heads=4, extra_attributes={"do_rotary": 1}).build()
    with pytest.raises(GraphCutError, match=r"microsoft\.Attention '/attention\.0': do_rotary=1"):
        cut(model)
    model = Handmade("mha", "none", kv_heads=4).build()
    attention(model).input[1] = attention(model).input[2] = ""
    with pytest.raises(GraphCutError, match=r"'/attention\.1': key and value packed"):
        cut(model)


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize(
    ("form", "rotary"), [("gqa", "inside"), ("gqa", "microsoft"), ("rows", "onnx"), ("heads", "onnx")]
)
def test_partial_rotary_gives_the_uncut_logits(form: str, rotary: str, interleaved: int) -> None:
    if form == "gqa":  # the operator wants head sizes and rotary sizes in multiples of 8
        made = Handmade(form, rotary, head_dim=32, rotary_dim=16, theta=5e5, interleaved=interleaved)
    else:
        made = Handmade(form, rotary, head_dim=16, rotary_dim=8, theta=5e5, interleaved=interleaved)
    rope = assert_same(made.build()).facts.rope
    assert rope.rotary_dim == made.rotary_dim and rope.layout == ("interleaved" if interleaved else "half")
    assert rope.theta == 5e5


def test_half_precision_graph_takes_and_gives_float32() -> None:
    graph = assert_same(Handmade("gqa", "inside", half=True).build(), tolerance=3e-2)
    assert graph.facts.kv_type == onnx.TensorProto.FLOAT16
    weights = [t for s in graph.segments for t in s.model.graph.initializer if len(t.dims) == 2]
    assert {t.data_type for t in weights} == {onnx.TensorProto.FLOAT16}


def test_frames_run_without_logits_and_every_layer_attends_once_in_order() -> None:
    graph = cut(Handmade(layers=5).build())
    calls: list[int] = []

    def attend(layer: int, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
        calls.append(layer)
        assert q.shape == (13, 4, 16) and k.shape == v.shape == (13, 2, 16)
        return q

    assert CutDecoder(graph, "test").run(np.ones((13, HIDDEN), np.float32), attend, want_logits=False) is None
    assert calls == [0, 1, 2, 3, 4]


def test_no_weight_is_in_two_segments_and_no_rotary_table_in_any(built: Build) -> None:
    model = load(built("qwen2", "int4", 1e6, "accuracy_level=1"))
    graph = cut(model)
    names = [t.name for s in graph.segments for t in s.model.graph.initializer if np.prod(t.dims) > 4]
    assert len(names) == len(set(names))
    kept = {t.name for t in model.graph.initializer} - {"cos_cache", "sin_cache"}
    assert set(names) == {n for n in kept if n in names} and not {"cos_cache", "sin_cache"} & set(names)
    assert len(graph.segments) == 4


def test_last_segment_works_on_the_last_token_only(built: Build) -> None:
    for model in (
        load(built("qwen2", "int4", 1e6, "accuracy_level=1")),
        Handmade().build(),
        Handmade("heads", "onnx").build(),
    ):
        last = cut(model).segments[-1].model
        first_use = next(n for n in last.graph.node if n.op_type not in ("Cast", "Transpose", "Reshape"))
        assert first_use.op_type == "Gather"
        pieces = CutDecoder(cut(model), "test")
        assert pieces.run(np.ones((9, HIDDEN), np.float32), lambda layer, q, k, v: q).shape == (96,)


def test_weights_outside_the_file_stay_outside(tmp_path: Path) -> None:
    model = Handmade().build()
    copy = Handmade().build()  # saving moves the weights out of the object too
    onnx.save(
        copy,
        tmp_path / "model.onnx",
        save_as_external_data=True,
        location="model.onnx_data",
        size_threshold=256,
    )
    outside = onnx.load(tmp_path / "model.onnx", load_external_data=False)
    graph = cut(outside, folder=str(tmp_path))
    assert graph.facts.rope.theta == 1e4
    assert sum(s.model.ByteSize() for s in graph.segments) < 30_000
    embeds = np.random.default_rng(0).standard_normal((4, HIDDEN)).astype(np.float32)
    got = CutDecoder(graph, "test", 1, str(tmp_path)).run(embeds, lambda layer, q, k, v: q)
    want = CutDecoder(cut(model), "test").run(embeds, lambda layer, q, k, v: q)
    np.testing.assert_array_equal(got, want)


def attention(model: onnx.ModelProto, layer: int = 1) -> onnx.NodeProto:
    return next(n for n in model.graph.node if n.name == f"/attention.{layer}")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("softcap", 30.0),
        ("local_window_size", 128),
        ("smooth_softmax", 1),
        ("causal", 0),
        ("qk_output", 1),
        ("k_quant_type", "PER_TENSOR"),
        ("something_new", 3),
    ],
)
def test_attributes_that_change_attention_are_refused(name: str, value: object) -> None:
    model = Handmade().build()
    attention(model).attribute.append(onnx.helper.make_attribute(name, value))
    with pytest.raises(GraphCutError, match=rf"GroupQueryAttention '/attention\.1'.*{name}"):
        cut(model)


@pytest.mark.parametrize(("place", "name"), [(10, "attention_bias"), (11, "head_sink"), (12, "k_scale")])
def test_inputs_that_change_attention_are_refused(place: int, name: str) -> None:
    model = Handmade().build()
    node = attention(model)
    node.input.extend([""] * (place - len(node.input)) + ["some_tensor"])
    with pytest.raises(
        GraphCutError, match=rf"GroupQueryAttention '/attention\.1'.*{name} \('some_tensor'\)"
    ):
        cut(model)


def test_an_attention_mask_and_missing_causality_are_refused() -> None:
    model = Handmade("rows", "onnx").build()
    attention(model).input[3] = "attention_mask"
    with pytest.raises(GraphCutError, match=r"Attention '/attention\.1'.*attn_mask"):
        cut(model)
    model = Handmade("rows", "onnx", extra_attributes={"is_causal": 0}).build()
    with pytest.raises(GraphCutError, match=r"Attention '/attention\.0'.*is_causal=0"):
        cut(model)


def test_unknown_attention_operators_are_refused() -> None:
    model = Handmade(rotary="none").build()
    attention(model).op_type = "MultiHeadAttention"
    with pytest.raises(GraphCutError, match=r"com\.microsoft\.MultiHeadAttention '/attention\.1'"):
        cut(model)
    model = Handmade(rotary="none").build()
    node = attention(model)
    node.op_type, node.domain = "Concat", ""
    with pytest.raises(GraphCutError, match=r"Concat '/attention\.1' takes past_key_values\.1\.key"):
        cut(model)


def test_anything_else_that_sees_positions_or_the_cache_is_refused() -> None:
    model = Handmade(rotary="none").build()
    node = next(n for n in model.graph.node if n.name == "/up.0")
    index = list(model.graph.node).index(node)
    cast = onnx.helper.make_node("Cast", ["position_ids"], ["late"], name="/late", to=1)
    add = onnx.helper.make_node("Add", [node.input[0], "late"], ["shifted"], name="/shift")
    model.graph.node.insert(index, cast)
    model.graph.node.insert(index + 1, add)
    model.graph.node[index + 2].input[0] = "shifted"
    with pytest.raises(GraphCutError, match=r"Cast '/late' needs 'position_ids'"):
        cut(model)


def test_a_norm_after_the_rotation_is_refused() -> None:
    model = Handmade("gqa", "microsoft").build()
    node = attention(model, 0)
    index = list(model.graph.node).index(node)
    tanh = onnx.helper.make_node("Tanh", [node.input[1]], ["squashed"], name="/squash")
    model.graph.node[index].input[1] = "squashed"
    model.graph.node.insert(index, tanh)
    with pytest.raises(GraphCutError, match=r"'/attention\.0'.*only one of query and key"):
        cut(model)
    node = attention(model, 0)
    node.input[0] = "squashed"
    with pytest.raises(GraphCutError, match=r"RotaryEmbedding '/q\.0\.rotated' is not directly before"):
        cut(model)


def test_graphs_that_are_no_decoder_are_refused() -> None:
    model = Handmade().build()
    model.graph.input[0].name = "input_ids"
    with pytest.raises(GraphCutError, match="takes input_ids"):
        cut(model)
    model = Handmade().build()
    kept = [v for v in model.graph.input if not v.name.startswith("past")]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    with pytest.raises(GraphCutError, match=r"no past_key_values\.N\.key inputs"):
        cut(model)


def test_layers_that_differ_are_refused() -> None:
    model = Handmade().build()
    attention(model).attribute.append(onnx.helper.make_attribute("scale", 0.5))
    with pytest.raises(GraphCutError, match=r"'/attention\.1'.*layer 1 has"):
        cut(model)


def test_a_theta_that_config_json_contradicts_is_refused() -> None:
    assert cut(Handmade().build(), {"rope_theta": 1e4}).facts.rope.theta == 1e4
    with pytest.raises(GraphCutError, match=r"theta 10000, config\.json says 1e\+06"):
        cut(Handmade().build(), {"rope_theta": 1e6})


@pytest.mark.parametrize("theta", [1e4, 1e5, 5e5, 1e6, 123456.0])
@pytest.mark.parametrize("half", [1, 4, 16, 64])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_theta_is_recovered_from_the_tables(theta: float, half: int, dtype: type) -> None:
    inverse = (1.0 / theta ** (np.arange(half, dtype=np.float32) / half)).astype(np.float32)
    angle = np.arange(2048, dtype=np.float32)[:, None] * inverse
    found = recover_theta(np.cos(angle).astype(dtype), np.sin(angle).astype(dtype))
    if half > 1:
        assert found == pytest.approx(theta, rel=1e-5 if dtype == np.float32 else 1e-3)


SCALED = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
    "llama3": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "longrope": {
        "rope_type": "longrope", "factor": 4.0, "short_factor": [1 + 0.1 * i for i in range(8)],
        "long_factor": [4.0] * 8, "original_max_position_embeddings": 512,
    },
}  # fmt: skip


def scaled_frequencies(kind: str) -> tuple[np.ndarray, float]:
    """As the library computes them for heads of 16 and theta 1e4: frequencies, attention factor."""
    config = transformers.LlamaConfig(
        hidden_size=64, num_attention_heads=4, max_position_embeddings=2048,
        rope_parameters=SCALED[kind] | {"rope_theta": 1e4},
    )  # fmt: skip
    made, factor = ROPE_INIT_FUNCTIONS[kind](config, "cpu")
    return made.double().numpy(), float(factor)


@pytest.mark.parametrize("kind", SCALED)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_scaled_frequencies_are_recovered_from_the_tables(kind: str, dtype: type) -> None:
    frequencies, factor = scaled_frequencies(kind)
    angle = np.arange(3000)[:, None] * frequencies
    found, carried = recover_frequencies(
        (factor * np.cos(angle)).astype(dtype), (factor * np.sin(angle)).astype(dtype)
    )
    near = 1e-6 if dtype == np.float32 else 1e-3
    assert found == pytest.approx(frequencies.tolist(), rel=1e-4 if dtype == np.float32 else 1e-2, abs=near)
    assert carried == pytest.approx(factor, rel=near)


@pytest.mark.parametrize("kind", SCALED)
@pytest.mark.parametrize("rotary", ["inside", "onnx"])
def test_a_decoder_with_scaled_rotary_tables_gives_the_uncut_logits(kind: str, rotary: str) -> None:
    frequencies, factor = scaled_frequencies(kind)
    model = Handmade(rotary=rotary).build()
    for tensor in model.graph.initializer:
        if tensor.name in ("cos_cache", "sin_cache"):
            angle = np.arange(tensor.dims[0])[:, None] * frequencies
            values = factor * (np.cos(angle) if tensor.name == "cos_cache" else np.sin(angle))
            tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), tensor.name))
    facts = assert_same(model).facts
    assert len(facts.rope.frequencies) == 8
    assert facts.scale == pytest.approx(0.25 * factor**2, rel=1e-5)


def test_tables_that_are_no_rotation_are_refused() -> None:
    model = Handmade().build()
    cos = next(tensor for tensor in model.graph.initializer if tensor.name == "cos_cache")
    damaged = numpy_helper.to_array(cos).copy()
    damaged[7, 3] += 0.01
    cos.CopyFrom(numpy_helper.from_array(damaged, "cos_cache"))
    with pytest.raises(GraphCutError, match="not those of one theta"):
        cut(model)


@pytest.mark.parametrize("change", ["linear", "yarn", "noise"])
def test_scaled_or_damaged_rotary_tables_are_refused(change: str) -> None:
    inverse = 1e4 ** (-np.arange(16) / 16)
    angle = np.arange(256)[:, None] * (inverse / 4 if change == "linear" else inverse)
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    if change == "yarn":
        cos, sin = cos * 1.1, sin * 1.1
    if change == "noise":
        cos[100, 3] += 1e-3
    with pytest.raises(ValueError, match="not those of one theta"):
        recover_theta(cos, sin)
