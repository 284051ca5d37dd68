"""The bench of caches, in its toy size: what it counts is right. What it times is not looked at."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
tf = pytest.importorskip("transformers")

BENCH = Path(__file__).resolve().parents[2] / "tools" / "bench"
LENGTHS = (3, 7, 13)
CAP_FRAMES = 200


@pytest.fixture(scope="module")
def bench(request: pytest.FixtureRequest) -> object:
    sys.path.insert(0, str(BENCH))
    request.addfinalizer(lambda: sys.path.remove(str(BENCH)))
    import cache_model
    import cache_streams
    import caches

    class Modules:
        model, streams, main = cache_model, cache_streams, caches

    return Modules


@pytest.fixture(scope="module")
def recorded(bench):
    size = bench.model.SIZES["tiny"]
    made = bench.model.build_model(size)
    return bench.model.Recorded(made, bench.model.encode_frames(made, size, LENGTHS[-1]))


def test_both_kinds_of_stream_read_the_same_model_frames_and_question(bench, recorded):
    question = "what lay there?"
    library = bench.streams.LibraryStream(recorded, tf.DynamicCache())
    for number in range(LENGTHS[-1]):
        library.append(number)
    theirs, again = library.ask(question, 5), library.ask(question, 5)
    library.close()
    ours = bench.streams.OurStream(recorded, "full", 64 << 20, exact="fp32", positions="original")
    for number in range(LENGTHS[-1]):
        ours.append(number)
    mine = ours.ask(question, 5)
    ours.close()
    np.testing.assert_allclose(mine.logits, theirs.logits, rtol=0, atol=1e-4)
    assert mine.text == theirs.text
    np.testing.assert_array_equal(again.logits, theirs.logits)  # a question leaves no trace
    assert again.text == theirs.text


def test_bytes_of_a_cache_are_those_of_every_key_and_value_it_was_given(bench, recorded):
    cache = tf.DynamicCache()
    stream = bench.streams.LibraryStream(recorded, cache)
    for number in range(5):
        stream.append(number)
    tokens = len(recorded.tokenize(recorded.spec.prefix)) + 5 * 16
    assert stream.cache_bytes() == tokens * 2 * 2 * 2 * 32 * 4  # layers, k and v, heads, D, float32
    stream.close()


def test_quantised_tensors_are_counted_by_their_parts(bench):
    class Packed(torch.Tensor):
        """As optimum-quanto wraps: the outer tensor has a shape, the inner ones the bytes."""

        def __tensor_flatten__(self):
            return ["data_part", "scale_part"], None

    packed = torch.zeros(100, 100).as_subclass(Packed)
    packed.data_part = torch.zeros(7, dtype=torch.uint8)
    packed.scale_part = torch.zeros(3, dtype=torch.float16)
    assert bench.streams.tensor_bytes([packed, {"more": (torch.zeros(5), None, 4)}]) == 7 + 6 + 20


def test_a_method_that_takes_too_long_stops_and_says_so(bench, recorded):
    make = bench.streams.contestants(4 << 20)["edge"]
    rows = list(bench.main.measure("edge", make, recorded, LENGTHS, 4 << 20, budget=0.0))
    assert [(row.frames, row.stopped) for row in rows] == [(1, "stopped: took 0 CPU s")]


def test_a_method_that_cannot_run_here_is_a_row_with_its_reason(bench, recorded):
    def broken(recorded):
        raise ImportError("You need to install it.\nReally.")

    rows = list(bench.main.measure("broken", broken, recorded, LENGTHS, 0, budget=60.0))
    assert [(row.frames, row.stopped) for row in rows] == [(3, "not run: You need to install it.")]


def test_the_table_holds_every_method_and_length_and_only_the_library_grows(
    bench, tmp_path, capsys, monkeypatch
):
    methods = ("edge", "mosaic", "rekv", "infinipot-v", "mukv", "DynamicCache")
    command = ["--size", "tiny", "--lengths", ",".join(map(str, LENGTHS)), "--cap-frames", str(CAP_FRAMES)]
    command += ["--out", str(tmp_path), "--json"]
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")  # as the command does itself, and leaves it so
    monkeypatch.syspath_prepend(str(BENCH))  # the same
    monkeypatch.setattr(sys, "argv", [str(BENCH), "caches", *command, "--methods", ";".join(methods)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(BENCH), run_name="__main__")
    assert not ended.value.code
    rows = json.loads(capsys.readouterr().out.splitlines()[0])["rows"]
    assert [(row["method"], row["frames"]) for row in rows] == [(m, n) for m in methods for n in LENGTHS]
    assert not any(row["stopped"] for row in rows)
    frame = 16 * 2 * 2 * 2 * 32 * 4  # tokens, layers, k and v, heads, D, float32
    for row in rows[: -len(LENGTHS)]:
        assert row["cap_bytes"] == CAP_FRAMES * frame
        assert 0 < row["cache_bytes"] <= row["cap_bytes"]
    first, second, third = rows[-len(LENGTHS) :]
    assert first["cap_bytes"] == second["cap_bytes"] == third["cap_bytes"] == 0
    assert second["cache_bytes"] - first["cache_bytes"] == 4 * frame
    assert third["cache_bytes"] - second["cache_bytes"] == 6 * frame
    lines = [line for line in (tmp_path / "caches.md").read_text().splitlines() if line.startswith("| ")]
    assert len(lines) == 1 + len(rows)
    assert len({line.count("|") for line in lines}) == 1
    assert (tmp_path / "caches.png").read_bytes()[:4] == b"\x89PNG"

    bench.main.main([*command, "--methods", "edge"])  # all of it is there, nothing is measured again
    assert json.loads(capsys.readouterr().out.splitlines()[0])["rows"] == rows
    with pytest.raises(SystemExit):
        bench.main.main([*command, "--methods", "edge", "--budget", "7"])
    assert "other settings" in capsys.readouterr().err
