"""Model directories made to do harm: whatever is wrong, it is a ModelError, and nothing runs without end."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import mosaic_edge
from mosaic_edge import ModelError
from mosaic_edge.engine import Engine
from mosaic_edge.models import tokenizer
from mosaic_edge.models.onnx import trial, vlm

TINY = Path(mosaic_edge.__file__).parent / "models" / "tiny"
PARTS = ("decoder_model_merged_q4", "embed_tokens", "vision_encoder")
QUESTION = "what colour was the ball ?"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(
        tokenizer, "limited", lambda *_: None
    )  # a child process a load; test_directory.py has it
    return shutil.copytree(TINY, tmp_path / "model", ignore=shutil.ignore_patterns("float"))


def refused(folder: Path) -> str:
    with pytest.raises(ModelError) as error:
        Engine.load(folder, threads=1)
    text = str(error.value)
    assert "\n" not in text
    return text


def change(folder: Path, name: str, edit: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads((folder / name).read_text())
    edit(document)
    (folder / name).write_text(json.dumps(document))


def rewrite(folder: Path, part: str, edit: Callable[[onnx.ModelProto], object]) -> Path:
    path = folder / "onnx" / f"{part}.onnx"
    model = onnx.load(path)
    edit(model)
    path.write_bytes(model.SerializeToString())
    return path


def largest(model: onnx.ModelProto) -> TensorProto:
    return max(model.graph.initializer, key=lambda tensor: tensor.ByteSize())


def put_aside(model: onnx.ModelProto) -> str:
    """The first output's name, its maker giving it another: for a node that comes in between."""
    name = model.graph.output[0].name
    for node in model.graph.node:
        for i, made in enumerate(node.output):
            if made == name:
                node.output[i] = f"{name}.before"
    return name


def loop(model: onnx.ModelProto) -> None:
    """2^60 turns on the way to the output."""
    name = put_aside(model)
    value = [helper.make_tensor_value_info(f"{end}", kind, shape) for end, kind, shape in (
        ("turn", 7, []), ("go", 9, []), ("value", 1, None))]  # fmt: skip
    made = [
        helper.make_tensor_value_info("go.out", 9, []),
        helper.make_tensor_value_info("value.out", 1, None),
    ]
    steps = [helper.make_node("Identity", [end], [f"{end}.out"]) for end in ("go", "value")]
    body = helper.make_graph(steps, "body", value, made)
    model.graph.initializer.append(numpy_helper.from_array(np.array(2**60, np.int64), "turns"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    model.graph.node.append(helper.make_node("Loop", ["turns", "yes", f"{name}.before"], [name], body=body))


@pytest.mark.parametrize("part", PARTS[1:])
def test_a_graph_that_loops_for_ever_is_ended_by_the_limit(
    folder: Path, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "SECONDS", 1.0)
    rewrite(folder, part, loop)
    assert f"{part}.onnx: its first run did not end in 1 s" in refused(folder)


def test_a_graph_that_loops_for_ever_is_ended_by_control_c(folder: Path) -> None:
    rewrite(folder, "vision_encoder", loop)
    began = time.monotonic()
    timer = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        Engine.load(folder, threads=1)
    timer.join()
    deadline = began + 60
    while any(thread.name == "mosaic-trial" for thread in threading.enumerate()):
        assert time.monotonic() < deadline, "the run goes on"
        time.sleep(0.01)


def heavy(model: onnx.ModelProto) -> None:
    """One operator that takes seconds, of constants: worked out when the graph is loaded, and deaf to being
    told to end."""
    name = put_aside(model)
    model.graph.initializer.append(numpy_helper.from_array(np.array([3000, 3000], np.int64), "wide"))
    for made in (
        helper.make_node("ConstantOfShape", ["wide"], ["zeros"]),
        helper.make_node("MatMul", ["zeros", "zeros"], ["product"]),
        helper.make_node("ReduceSum", ["product"], ["nothing"], keepdims=0),
        helper.make_node("Add", [f"{name}.before", "nothing"], [name]),
    ):
        model.graph.node.append(made)


def trials() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "mosaic-trial"]


@pytest.mark.parametrize("part", PARTS)
def test_an_operator_that_goes_on_is_left_to_its_thread(
    folder: Path, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "LOAD_SECONDS", 0.1)  # a busy machine may find another part late
    monkeypatch.setattr(trial, "END_SECONDS", 0.0)
    rewrite(folder, part, heavy)
    assert re.search(r"\.onnx.* onnxruntime did not load it in 0\.1 s", refused(folder))
    left = trials()
    assert left, "it is still at it"
    for thread in left:
        thread.join(600)


def test_work_under_a_limit_gives_what_it_makes_raises_what_it_raises_and_is_told_to_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trial, "END_SECONDS", 0.0)
    assert trial.watched(lambda: 7, "there", "it did not end", 600) == 7
    with pytest.raises(KeyError, match="key"):
        trial.watched(lambda: {}["key"], "there", "it did not end", 600)
    gate, told = threading.Event(), threading.Event()
    with pytest.raises(ModelError, match=r"there: it did not end in 0\.01 s"):
        trial.watched(lambda: gate.wait(600), "there", "it did not end", 0.01, told.set)
    assert told.is_set() and len(trials()) == 1
    gate.set()
    trials()[0].join(600)


def test_a_decoder_that_takes_too_long_is_ended_between_two_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow:
        def run(self, embeds: Any, attend: Callable[..., Any]) -> None:
            while True:
                attend(0, embeds, embeds, embeds)
                time.sleep(0.001)

    monkeypatch.setattr(vlm, "LOAD_SECONDS", 0.01)
    with pytest.raises(ModelError, match=r"there: its first run did not end in 0\.01 s"):
        vlm._first_run(Slow(), 4, "there")  # type: ignore[arg-type]
    assert not trials()


def test_an_onnxruntime_that_cannot_be_told_to_end_is_left_to_its_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gate = threading.Event()
    monkeypatch.setattr(trial, "LOAD_SECONDS", 0.01)
    monkeypatch.setattr(trial, "END_SECONDS", 0.0)
    monkeypatch.setattr(trial.ort, "InferenceSession", lambda *_, **__: gate.wait(600))
    with pytest.raises(ModelError, match=r"a\.onnx: onnxruntime did not load it in 0\.01 s"):
        trial.loaded(b"", object(), [], "a.onnx")  # type: ignore[arg-type]  # as 1.21 has it
    gate.set()
    for thread in trials():
        thread.join(600)


def test_a_decoder_that_runs_a_graph_of_its_own_is_refused_in_a_function_too(folder: Path) -> None:
    def wrap(model: onnx.ModelProto) -> None:
        loop(model)
        inner = model.graph.node[-1]
        model.functions.append(
            helper.make_function(
                "mine", "Turn", list(inner.input), list(inner.output), [inner], [helper.make_opsetid("", 17)]
            )
        )
        call = helper.make_node("Turn", list(inner.input), list(inner.output), domain="mine")
        model.graph.node[-1].CopyFrom(call)
        model.opset_import.append(helper.make_opsetid("mine", 1))

    rewrite(folder, PARTS[0], wrap)
    assert "Loop" in refused(folder) and "holds a graph of its own" in refused(folder)


def bomb(model: onnx.ModelProto) -> None:
    name = put_aside(model)
    model.graph.initializer.append(numpy_helper.from_array(np.array([60000, 50000], np.int64), "shape"))
    model.graph.node.append(helper.make_node("ConstantOfShape", ["shape"], ["made"], name="bomb"))
    model.graph.node.append(helper.make_node("ReduceSum", ["made"], ["sum"], keepdims=0))
    model.graph.node.append(helper.make_node("Add", [f"{name}.before", "sum"], [name]))


def resize(to: int) -> Callable[[onnx.ModelProto], None]:
    def edit(model: onnx.ModelProto) -> None:
        largest(model).dims[0] = to

    return edit


def place(location: str, offset: object = 0, length: int = 4) -> Callable[[onnx.ModelProto], None]:
    def edit(model: onnx.ModelProto) -> None:
        tensor = largest(model)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", offset), ("length", length)):
            entry = tensor.external_data.add()
            entry.key, entry.value = key, str(value)

    return edit


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (bomb, "ConstantOfShape 'bomb' makes 3000000000 elements"),
        (resize(2**31 - 1), r"bytes, \d+ are stored: damaged"),
        (resize(2**62), r"bytes, \d+ are stored: damaged"),
        (resize(-3), "a size below zero"),
        (place("w.data", "x"), "where its external data lies cannot be read"),
        (place("w.data", -100), "from byte -100 on"),
        (place("w.data"), r"takes \d+ bytes, 4 are stored"),
        (place(""), "external data ''"),
    ],
    ids=["bomb", "wide", "huge", "negative", "no number", "before the start", "short", "no name"],
)
def test_a_tensor_is_as_large_as_it_says_and_no_larger_than_can_be(
    folder: Path, part: str, edit: Callable[[onnx.ModelProto], None], said: str
) -> None:
    path = rewrite(folder, part, edit)
    text = refused(folder)
    assert text.startswith(f"{path}: ")
    assert re.search(said, text), text


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("location", ["../out.data", "/etc/passwd", "link.data", "sub/out.data", "fifo.data"])
def test_external_data_lies_in_the_directory_and_in_a_plain_file(
    folder: Path, tmp_path: Path, part: str, location: str
) -> None:
    model = onnx.load(folder / "onnx" / f"{part}.onnx")
    data = largest(model).raw_data
    (tmp_path / "out.data").write_bytes(data)
    (folder / "out.data").write_bytes(data)  # inside the directory, but not beside the graph
    (folder / "onnx" / "link.data").symlink_to(tmp_path / "out.data")
    (folder / "onnx" / "sub").symlink_to(tmp_path)
    os.mkfifo(folder / "onnx" / "fifo.data")
    rewrite(folder, part, place(location, length=len(data)))
    assert f"{part}.onnx" in refused(folder) or "onnx/" in refused(folder)


@pytest.mark.parametrize("part", PARTS[1:])
def test_weights_that_are_not_finite_are_refused_when_they_are_loaded(folder: Path, part: str) -> None:
    def poison(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            if tensor.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16):
                array = np.full_like(numpy_helper.to_array(tensor), np.nan)
                tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))

    rewrite(folder, part, poison)
    assert "NaN or infinity" in refused(folder)


def test_an_embedding_with_fewer_rows_than_there_are_ids_is_refused(folder: Path) -> None:
    def halve(model: onnx.ModelProto) -> None:
        tensor = largest(model)
        array = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array[: len(array) // 2]), tensor.name))

    rewrite(folder, "embed_tokens", halve)
    assert "do not fit together" in refused(folder)


@pytest.mark.parametrize(
    "name", ["../other/onnx/decoder.onnx", "/etc/passwd", "onnx/fifo.onnx", "", "onnx/no.onnx"]
)
def test_genai_names_a_plain_file_of_the_directory(folder: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(folder, tmp_path / "other")
    decoder = tmp_path / "other" / "onnx" / f"{PARTS[0]}.onnx"
    decoder.rename(decoder.with_name("decoder.onnx"))
    os.mkfifo(folder / "onnx" / "fifo.onnx")
    change(folder, "genai_config.json", lambda said: said["model"]["decoder"].update(filename=name or 7))
    text = refused(folder)
    assert "genai_config.json" in text or "fifo.onnx: not a plain file" in text


@pytest.mark.parametrize("key", ["prefix", "template"])
def test_a_prompt_of_words_that_the_model_lacks_is_the_models_fault(folder: Path, key: str) -> None:
    change(
        folder,
        "mosaic.json",
        lambda said: said.update({key: "zorg {question}"[: None if key == "template" else 4]}),
    )
    assert f"mosaic.json: {key}: unknown word 'zorg'" in refused(folder)


ODD: list[Any] = [-1, 0, 3, 0.5, 1e9, 10**400, float("nan"), float("inf"), True, None, "x", "x" * 70_000, [],
                  [1, 2], [0.1, 0.2, 0.3], ["x"], {}, {"a": 1}]  # fmt: skip


def places(document: Any, before: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = (
        document.items()
        if isinstance(document, dict)
        else enumerate(document)
        if isinstance(document, list)
        else ()
    )
    return [place for key, value in items for place in ((*before, key), *places(value, (*before, key)))]


@pytest.mark.parametrize("seed", range(4))
def test_directories_with_any_one_value_replaced_load_and_answer_or_are_refused(
    folder: Path, seed: int
) -> None:
    """A seeded sample of every value in every JSON file, replaced by every odd one."""
    draw = random.Random(seed)
    files = ["config.json", "mosaic.json", "genai_config.json", "preprocessor_config.json"]
    documents = {name: (folder / name).read_text() for name in files}
    loaded = 0
    for _ in range(30):
        name = draw.choice(files)
        document = json.loads(documents[name])
        *path, key = draw.choice(places(document))
        inner = document
        for step in path:
            inner = inner[step]
        inner[key] = draw.choice(ODD)
        (folder / name).write_text(json.dumps(document))
        try:
            engine = Engine.load(folder, threads=1)
        except ModelError as error:
            assert str(folder) in str(error), error
        else:
            with engine.session(memory="4MiB", kernel_threads=1) as session:
                session.append(np.full((48, 48, 3), 90, np.uint8), 0.0)
                assert np.isfinite(session.ask(QUESTION).logits).all()
            loaded += 1
        (folder / name).write_text(documents[name])
    assert 3 < loaded < 30
