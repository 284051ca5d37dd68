"""Every file of examples/, run as it stands; ROS 2 and the terminal are played."""

from __future__ import annotations

import importlib.util
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from http_service import TOKEN, serving
from mosaic_edge import open_live
from mosaic_edge.serve.thumbnails import as_jpeg
from mosaic_edge.world import World, write_mp4
from numpy_vlm import picture

EXAMPLES = Path(__file__).parents[2] / "examples"
QUESTION = "what colour was the ball ?"


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_each_is_named_here_and_in_the_readme_of_the_folder() -> None:
    names = {path.name for path in EXAMPLES.glob("*.py")}
    mine, readme = Path(__file__).read_text(), (EXAMPLES / "README.md").read_text()
    assert all(f'load("{name[:-3]}")' in mine and f"({name})" in readme for name in names)
    assert len(names) == 4


def test_the_camera_loop_answers_what_the_terminal_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    video = tmp_path / "world.mp4"
    write_mp4(video, World(7, 20.0, "plain"), 2)
    example, seen = load("camera_loop"), threading.Event()

    def frames(*given: Any, **settings: Any) -> Iterator[Any]:
        yield from open_live(*given, **settings)
        seen.set()

    def typed() -> Iterator[str]:
        seen.wait()
        yield from ["flurb\n", f"{QUESTION}\n"]

    monkeypatch.setattr(example, "open_live", frames)
    monkeypatch.setattr(sys, "stdin", typed())
    example.main(str(video), memory="1MiB")
    refused, answered = capsys.readouterr().out.splitlines()
    assert "unknown word 'flurb'" in refused
    assert "(seen " in answered and " s)" in answered


def test_the_http_client_shows_pictures_asks_and_leaves_nothing_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(3):
        (tmp_path / f"{i}.jpg").write_bytes(as_jpeg(picture(i), 64))
    with serving() as service:
        url = f"http://127.0.0.1:{service.client.port}"
        load("http_client").main(url, TOKEN, *map(str, sorted(tmp_path.glob("*.jpg"))))
        assert service.client.good("GET", "/v1/sessions")["data"] == []
    *answer, seen = capsys.readouterr().out.split("\n")
    assert "".join(answer).strip() and seen.startswith("seen: [{'start': 0.0")


def test_a_policy_of_ones_own_is_asked_what_the_others_are(capsys: pytest.CaptureFixture[str]) -> None:
    load("own_policy").main(40)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["edge", "window", "LongValues"]
    assert all(0 <= int(line.split()[1]) <= 24 and line.endswith(" of 24 right") for line in lines)


class _Ros:
    """As much of rclpy as a node needs; what it publishes stands in `said`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **parameters: Any) -> None:
        ros, self.said, self.heard = self, [], {}  # type: ignore[var-annotated]

        class Node:
            def __init__(self, name: str) -> None:
                self.name = name

            def declare_parameter(self, name: str, default: Any) -> Any:
                return SimpleNamespace(value=parameters.get(name, default))

            def create_publisher(self, kind: type, topic: str, depth: int) -> Any:
                return SimpleNamespace(publish=ros.said.append)

            def create_subscription(self, kind: type, topic: str, call: Any, quality: Any) -> None:
                ros.heard[topic] = call

            def destroy_node(self) -> None: ...

        modules: dict[str, dict[str, Any]] = {
            "rclpy": {"init": lambda: None, "try_shutdown": lambda: None, "spin": lambda node: None},
            "rclpy.node": {"Node": Node},
            "rclpy.qos": {"qos_profile_sensor_data": object()},
            "sensor_msgs.msg": {"Image": object},
            "std_msgs.msg": {"String": SimpleNamespace},
        }
        for name, members in modules.items():
            module = ModuleType(name)
            module.__dict__.update(members)
            monkeypatch.setitem(sys.modules, name, module)
        self.module = sys.modules["rclpy"]

    def see(self, image: np.ndarray, seconds: float, encoding: str, padding: int = 0) -> None:
        rows = np.pad(image.reshape(len(image), -1), [(0, 0), (0, padding)])
        stamp = SimpleNamespace(sec=int(seconds), nanosec=round(seconds % 1 * 1e9))
        self.heard["/camera/image_raw"](
            SimpleNamespace(
                header=SimpleNamespace(stamp=stamp), height=image.shape[0], width=image.shape[1],
                step=rows.shape[1], encoding=encoding, data=rows.tobytes(),
            )
        )  # fmt: skip

    def ask(self, question: str) -> dict[str, Any]:
        self.heard["~/question"](SimpleNamespace(data=question))
        document: dict[str, Any] = json.loads(self.said[-1].data)
        return document


def test_the_ros_node_sees_pictures_of_both_orders_at_its_rate_and_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ros = _Ros(monkeypatch, memory="1MiB", fps=2.0)
    example = load("ros2_node")

    def spin(node: Any) -> None:
        world, seen = World(7, 12.0, "plain"), []
        append = node.session.append
        monkeypatch.setattr(node.session, "append", lambda *frame: (seen.append(frame), append(*frame)))
        for i in range(40):  # ten a second
            image = world.render(i / 10)
            ros.see(image if i % 2 else image[:, :, ::-1], 100 + i / 10, "rgb8" if i % 2 else "bgr8", 5)
        assert [seconds for _, seconds in seen] == pytest.approx([100 + i / 2 for i in range(8)])
        for image, seconds in seen:
            np.testing.assert_array_equal(image, world.render(seconds - 100))
        reply = ros.ask(QUESTION)
        assert reply["question"] == QUESTION and reply["answer"] and reply["evidence"]
        assert "unknown word" in ros.ask("flurb")["error"]
        assert node.session.memory()["frames"] == 8

    ros.module.spin = spin  # type: ignore[attr-defined]
    example.main()
