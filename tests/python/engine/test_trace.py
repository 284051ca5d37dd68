"""trace=: valid JSON of what a session did, one trace a process, nothing where it is off."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from mosaic_edge import Engine, InvalidInput, MemoryCapError, _core, cli
from numpy_vlm import NumpyVlm, picture

SETTINGS: dict[str, Any] = {"memory": "448KiB", "policy": "rekv", "disk": "1MiB", "branch_tokens": 16}


def read(path: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    document = json.loads(path.read_text())
    return [e for e in document["traceEvents"] if e["ph"] == "X"], document["otherData"]


def test_a_session_writes_its_spans_when_it_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    with Engine(NumpyVlm()).session(**SETTINGS, trace=str(path)) as session:
        for number in range(150):
            session.append(picture(number), float(number))
        session.ask("what colour was the ball ?")
        assert not path.exists(), "it appears when it is whole"
    spans, facts = read(path)
    counts = Counter(span["name"] for span in spans)
    assert set(counts) == {
        "encode_frame", "forward", "select", "prefetch", "copy_wait", "attend", "admit",
        "spill_read", "spill_write",
    }  # fmt: skip
    assert counts["encode_frame"] == 150
    assert counts["attend"] == 3 * counts["forward"]  # layers
    assert facts["overwritten_spans"] == facts["spans_without_ring"] == 0
    names = {
        e["tid"]: e["args"]["name"] for e in json.loads(path.read_text())["traceEvents"] if e["ph"] == "M"
    }
    assert {names[span["tid"]] for span in spans if span["name"].startswith("spill_")} == {"mosaic-copy"}
    # A layer attends inside a pass of the decoder.
    passes = [(span["ts"], span["ts"] + span["dur"]) for span in spans if span["name"] == "forward"]
    for span in spans:
        assert span["dur"] >= 0
        if span["name"] == "attend":
            assert 0 <= span["args"]["lane"] < 3
            assert any(begin <= span["ts"] and span["ts"] + span["dur"] <= end for begin, end in passes)


def test_the_bytes_of_an_answer_are_the_same_with_a_trace_and_without(tmp_path: Path) -> None:
    logits = []
    for trace in (None, str(tmp_path / "trace.json")):
        with Engine(NumpyVlm()).session(**SETTINGS, trace=trace) as session:
            for number in range(60):
                session.append(picture(number), float(number))
            logits.append(session.ask("what colour was the ball ?").logits.tolist())
    assert logits[0] == logits[1]


def test_a_second_trace_a_folder_that_is_not_there_and_a_refused_cap_leave_the_way_free(
    tmp_path: Path,
) -> None:
    engine = Engine(NumpyVlm())
    first, second = str(tmp_path / "first.json"), str(tmp_path / "second.json")
    with engine.session(memory="1MiB", trace=first) as session:
        with pytest.raises(InvalidInput, match="one at a time"):
            engine.session(memory="1MiB", trace=second)
        session.append(picture(0), 0.0)
    assert read(Path(first))[0]
    with pytest.raises(FileNotFoundError):
        engine.session(memory="1MiB", trace=str(tmp_path / "none" / "trace.json"))
    Path(second).write_text("of before")
    with pytest.raises(MemoryCapError):
        engine.session(memory="1KiB", trace=second)
    assert Path(second).read_text() == "of before"
    forgotten = engine.session(memory="1MiB", trace=second)
    del forgotten
    with engine.session(memory="1MiB", trace=second) as session:
        session.append(picture(0), 0.0)
    assert Counter(span["name"] for span in read(Path(second))[0])["encode_frame"] == 1


def test_a_span_of_no_known_name_is_refused() -> None:
    with pytest.raises(InvalidInput, match="encode_frame"):
        _core.trace_span("lunch", 1, 2)


def test_the_command_line_writes_one_too(tmp_path: Path, make_video: Any, capfd: Any) -> None:
    video, path = make_video(), tmp_path / "trace.json"
    ask = ["--ask", "what colour was the ball ?", "--json"]
    assert cli.main(["run", "--source", str(video), *ask, "--trace", str(path)]) == 0
    assert {"encode_frame", "attend"} <= {span["name"] for span in read(path)[0]}
    out = ["--out", str(tmp_path / "stress"), "--memory", "1MiB", "--frames", "16"]
    assert cli.main(["stress", *out, "--trace", str(path)]) == 0
    assert Counter(span["name"] for span in read(path)[0])["encode_frame"] == 16
    assert cli.main(["live", "--source", str(video), "--json", "--trace", str(path)]) == 0
    assert "forward" in {span["name"] for span in read(path)[0]}
    capfd.readouterr()
