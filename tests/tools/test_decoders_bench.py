"""tools/bench/decoders: streams say what is asked, answers are judged, cells are run once, tables add up."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fixtures_decoders import Small
from small_decoders import CHATML

pytest_plugins = ["fixtures_decoders"]
pytestmark = pytest.mark.usefixtures("bench")
pytest.importorskip("torch", reason="the decoders are of torch and transformers")


@pytest.mark.parametrize("form", ["plain", "varied"])
@pytest.mark.parametrize("length", [1, 5, 7, 13, 192, 3072])
def test_every_question_is_answered_by_its_own_scene_and_no_other(form: str, length: int) -> None:
    from decoders.streams import make_stream

    stream = make_stream(length, 7, form, perception=9)
    assert stream == make_stream(length, 7, form, perception=9)
    assert len(stream.sentences) == length
    assert [q.asked for q in stream.questions] == sorted(q.asked for q in stream.questions)
    for question in stream.questions:
        first, last = question.scene
        said = [f" {question.answer}" in sentence for sentence in stream.sentences]
        assert all(said[first : last + 1])
        pair = question.text[:-1].partition(" the ")[2]
        says = [i for i, s in enumerate(stream.sentences) if f" {pair} " in s or f" {pair}." in s]
        if question.kind == "perception":
            assert first < last == question.asked - 1
            assert says[: last - first + 1] == list(range(first, last + 1))
        else:
            assert says == list(range(first, last + 1))
            assert 2 <= last - first <= 6
            assert question.asked == length
    recall = [q for q in stream.questions if q.kind == "recall"]
    assert len({q.text for q in recall}) == len(recall)
    assert len(recall) == 40 if length == 3072 else len(recall) <= 40


def test_the_plain_stream_of_a_seed_stays_what_it_was() -> None:
    from decoders.streams import make_stream

    stream = make_stream(192, 7)
    recall = [q for q in stream.questions if q.kind == "recall"]
    assert stream.sentences[0] == "The bathroom is empty. A radio plays.\n"
    assert [(q.opening, q.answer, q.scene) for q in recall[:2]] == [
        ("The blue guitar was in the", "hallway", (186, 188)),
        ("The blue ball was in the", "library", (109, 115)),
    ]
    assert len(recall) == 23
    said = hashlib.sha256("".join(stream.sentences).encode())
    assert said.hexdigest()[:16] == "6b633b77d672d532"


@pytest.mark.parametrize("sentence", ["a", "ab\n", "abc", "It's\n", "Die Tür ist zu.\n", "x" * 100])
def test_a_picture_says_its_sentence(sentence: str) -> None:
    from decoders.narrated_vlm import picture_of, sentence_of

    picture = picture_of(sentence)
    assert (picture.dtype, picture.ndim, picture.shape[2]) == (np.uint8, 3, 3)
    assert sentence_of(picture) == sentence


def test_a_chat_template_puts_what_was_seen_and_the_question_into_one_turn(small: Small) -> None:
    from decoders.decoder import Decoder
    from decoders.narrated_vlm import asked, prompt_of
    from decoders.streams import make_stream

    decoder = Decoder(small(template=CHATML))
    prefix, template = prompt_of(decoder)
    assert prefix == (
        "<|im_start|>system\nYou remember what was seen.<|im_end|>\n"
        "<|im_start|>user\nThis is what was seen, in order:\n"
    )
    question = next(q for q in make_stream(192, 7).questions if q.kind == "recall")
    text = template.replace("{question}", asked(decoder, question))
    assert text == f"\n{question.text}<|im_end|>\n<|im_start|>assistant\n{question.opening}"


def test_kl_and_nll_are_those_of_the_definition(small: Small) -> None:
    from decoders.decoder import Decoder
    from decoders.judge import judged, room_ids
    from decoders.streams import make_stream

    decoder, stream = Decoder(small()), make_stream(50, 1, perception=3)
    random, asked = np.random.default_rng(5), len(stream.questions)
    mine, full = (random.normal(0, 9, (asked, decoder.shape.vocab)).astype(np.float32) for _ in range(2))
    rooms = room_ids(decoder, stream)
    for row, question, q, p in zip(
        judged(decoder, stream, mine, full), stream.questions, mine, full, strict=True
    ):
        p, q = (np.exp(x.astype(np.float64)) / np.exp(x.astype(np.float64)).sum() for x in (p, q))
        assert row["kl"] == pytest.approx(sum(a * np.log(a / b) for a, b in zip(p, q, strict=True)), abs=1e-5)
        assert row["nll"] == pytest.approx(-np.log(q[rooms[question.answer]]), abs=1e-4)
        assert row["right"] == (max(rooms, key=lambda room: q[rooms[room]]) == question.answer)
    assert {row["kl"] for row in judged(decoder, stream, full, full)} == {0}


def test_sessions_that_share_a_pass_answer_as_alone_and_one_that_fails_leaves(small: Small) -> None:
    from decoders.cells import StreamRun
    from decoders.decoder import Decoder
    from decoders.streams import make_stream
    from decoders.together import run_together

    decoder, stream = Decoder(small()), make_stream(29, 1, perception=4)
    given = [
        {"policy": "window", "memory": "1MiB"}, {"policy": "uniform", "memory": "200KiB"},
        {"policy": "full", "memory": "60KiB"}, {"policy": "edge", "memory": "1KiB"},
    ]  # fmt: skip

    def run(settings: dict[str, Any], forward: Any = None) -> Any:
        try:
            return StreamRun(decoder, stream, {"kernel_threads": 1, **settings}).go(forward)[1]
        except Exception as error:
            return str(error)

    alone = [run(settings) for settings in given]
    joined = run_together(decoder, [lambda t, s=s: run(s, t.forward) for s in given])
    assert ["memory= is" in x or "needs" in x for x in alone[2:]] == [True, True]
    assert joined[2:] == alone[2:]
    for one, other in zip(alone[:2], joined[:2], strict=True):
        assert np.abs(one - other).max() < 1e-4


def test_an_attention_that_fails_is_the_failure_of_its_own_session(small: Small) -> None:
    from decoders.decoder import Decoder
    from decoders.together import run_together

    decoder = Decoder(small())
    embeds = decoder.embed([2, 3, 4])

    def work(together: Any, bad: bool) -> Any:
        def attend(layer: int, q: Any, k: Any, v: Any) -> Any:
            if bad and layer == 1:
                raise RuntimeError("broken")
            return q

        try:
            return together.forward(embeds, attend, True)
        except RuntimeError as error:
            return str(error)

    good, bad, same = run_together(
        decoder, [lambda t: work(t, False), lambda t: work(t, True), lambda t: work(t, False)]
    )
    assert bad == "broken"
    assert np.abs(good - decoder.forward(embeds, lambda layer, q, k, v: q, [2])[0]).max() < 1e-5
    assert np.abs(good - same).max() < 1e-5


def run_bench(folder: Path, out: Path, *more: str) -> tuple[dict[str, Any], int]:
    """Tables of a run, and how many cells are on file."""
    from decoders import cli

    arguments = ["--model", str(folder), "--dtype=fp32", "--sentences=60", "--seeds=1,2", "--perception=3"]
    assert cli.main([*arguments, "--out", str(out), "--log", str(out / "log"), *more]) == 0
    log = out / "log"
    return json.loads((out / "decoders.json").read_text()), len(log.read_text().splitlines())


def test_cells_are_run_once_and_tables_say_what_was_kept_and_read(small: Small, tmp_path: Path) -> None:
    folder, out = small(), tmp_path / "out"
    ask = ["--policies=full,window=4,rekv,uniform=read,edge", "--caps=90%", "--together=3"]
    data, cells = run_bench(folder, out, *ask)
    assert cells == 10
    assert run_bench(folder, out, *ask) == (data, 10)
    both, cells = run_bench(folder, out, *ask, "--settings=retrieve_tokens=96")
    assert (len(data["rows"]), len(both["rows"]), len(both["commands"]), cells) == (5, 10, 2, 20)
    rows = {row["policy"]: row for row in data["rows"]}
    assert set(rows) == {"full", "window=4", "rekv", "uniform=read", "edge"}
    for row in rows.values():
        assert set(row) >= {
            "model", "sentences", "policy", "cap_share", "disk", "questions", "accuracy", "nll", "kl",
            "tokens_read", "tokens_kept", "bytes",
        }  # fmt: skip
        assert 0 <= row["accuracy"] <= 1
        assert row["questions"] > 8
        assert row["tokens_read"] <= row["tokens_kept"] <= row["tokens"]
    full, narrow = rows["full"], rows["window=4"]
    assert full["kl"] < 1e-4
    assert full["tokens_kept"] == full["tokens"]
    assert narrow["kl"] > full["kl"]
    longest, prefix = 11, 15
    # The first frame never yields, and a store has four pages at least: more than a frame of three layers.
    assert narrow["tokens_kept"] <= prefix + 6 * longest
    assert rows["uniform=read"]["tokens_kept"] == pytest.approx(rows["rekv"]["tokens_read"], abs=3 * longest)
    text = (out / "decoders.md").read_text()
    assert str(tmp_path) not in text + json.dumps(data)
    assert "--model=DIR" in text


def test_each_rung_takes_one_thing_more_away(small: Small, tmp_path: Path) -> None:
    ask = [
        "--policies=full,rekv[retrieve_tokens=64]",
        "--caps=150%",
        "--codec=int8",
        "--rungs=exact,kept,chosen,packed,disk",
        "--disk=256KiB",
    ]
    data, _ = run_bench(small(), tmp_path / "out", *ask)
    ladder = {r["rung"]: r for r in data["ladder"]}
    exact, kept, chosen = (ladder[rung] for rung in ("exact", "kept", "chosen"))
    packed, disk = ({r["rung"]: r for r in data["rows"]}[rung] for rung in ("packed", "disk"))
    assert (exact["policy"], exact["kl"], exact["tokens_by_place"]["quantised"]) == ("full", 0, 0)
    assert exact["tokens_kept"] == kept["tokens_kept"] == kept["tokens"]
    assert kept["tokens_by_place"]["quantised"] == chosen["tokens_by_place"]["quantised"] == 0
    assert chosen["bytes"] > packed["bytes"]
    assert chosen["tokens_kept"] == pytest.approx(packed["tokens_kept"], rel=0.02)
    assert disk["tokens_by_place"]["spilled"] > 0 == packed["tokens_by_place"]["spilled"]


def test_a_policy_without_room_has_a_row_that_says_why(small: Small, tmp_path: Path) -> None:
    data, _ = run_bench(small(), tmp_path / "out", "--policies=edge", "--caps=1%")
    assert "needs at least" in data["rows"][0]["error"]
    assert "needs at least" in (tmp_path / "out" / "decoders.md").read_text()


def test_a_setting_that_the_policy_does_not_know_is_named_before_anything_runs(
    small: Small, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run_bench(small(), tmp_path / "out", "--policies=window=4,edge[nonsense=1]", "--caps=90%")
    assert "nonsense" in capsys.readouterr().err
    assert not (tmp_path / "out" / "log").exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("--policies=nonsense", "policy='nonsense' is unknown"),
        ("--caps=64KiB", "expected shares such as 10%"),
        ("--rungs=lower", "rungs='lower'"),
        ("--rungs=disk", "say how large with --disk"),
    ],
)
def test_a_wrong_argument_is_named(given: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    from decoders import cli

    with pytest.raises(SystemExit):
        cli.main([given])
    assert said in capsys.readouterr().err


def _nearly(value: Any) -> Any:
    """Numbers that were rounded once more on their way."""
    if isinstance(value, str | bool | list) or value is None:
        return value
    return pytest.approx(value, abs=2e-4 if isinstance(value, float) else 1)


def test_runs_of_other_seeds_are_joined_into_what_one_run_gives(small: Small, tmp_path: Path) -> None:
    from decoders import cli

    folder, ask = small(), ("--policies=window=4,edge", "--caps=90%,1%", "--together=2")
    for seeds in ("1", "2", "1,2", "1,3"):
        run_bench(folder, tmp_path / seeds, *ask, f"--seeds={seeds}")
    out = tmp_path / "1"
    (out / "decoders.md").write_text("A head of one's own.\n" + (out / "decoders.md").read_text())
    assert cli.main(["--join", str(tmp_path / "2"), "--out", str(out)]) == 0
    joined, whole = (json.loads((tmp_path / name / "decoders.json").read_text()) for name in ("1", "1,2"))
    assert len(joined["rows"]) == len(whole["rows"]) == 3
    for ours, theirs in zip(joined["rows"], whole["rows"], strict=True):
        for name in set(theirs) - {"attend_ms"}:
            near = theirs[name]
            if name not in ("seeds", "questions", "perception_questions"):
                near = _nearly(near)
            assert ours[name] == near, name
    assert len(joined["commands"]) == 2
    text = (out / "decoders.md").read_text()
    assert text.startswith("A head of one's own.") and "Seeds 1, 2;" in text
    # All seeds of what is there: its place is taken. Some of them: nothing changes.
    assert cli.main(["--join", str(tmp_path / "1,2"), "--out", str(out)]) == 0
    assert json.loads((out / "decoders.json").read_text())["rows"] == whole["rows"]
    with pytest.raises(SystemExit):
        cli.main(["--join", str(tmp_path / "1,3"), "--out", str(out)])
    assert json.loads((out / "decoders.json").read_text())["rows"] == whole["rows"]


@pytest.mark.parametrize("broken", ["a page that cannot be made", "a disk that is full"])
def test_a_table_that_cannot_be_written_leaves_the_rows_of_before(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from decoders import join, report

    before = {"decoders.json": '{"commands": ["a"], "rows": [], "ladder": []}', "decoders.md": "A head.\n"}
    for folder in ("out", "other"):
        (tmp_path / folder).mkdir()
        for name, text in before.items():
            (tmp_path / folder / name).write_text(text)
    write = Path.write_text

    def full(path: Path, text: str) -> int:
        if "decoders.md" in path.name:
            write(path, text[:5])
            raise OSError(28, "No space left on device")
        return write(path, text)

    def unmade(*_: object) -> str:
        raise KeyError("a column")

    if broken == "a disk that is full":
        monkeypatch.setattr(Path, "write_text", full)
    else:
        monkeypatch.setattr(report, "tables", unmade)
    with pytest.raises((OSError, KeyError)):
        join.join(tmp_path / "out", [tmp_path / "other"], "")
    assert {path.name: path.read_text() for path in (tmp_path / "out").iterdir()} == before
