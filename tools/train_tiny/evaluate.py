"""Accuracy of a checkpoint with its full cache, per difficulty, length and kind, in float and with int4
rounding.

python tools/train_tiny/evaluate.py CHECKPOINT [--frames 32 128 256 512] [--worlds 8] [--mp4]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "python"), str(Path(__file__).resolve().parent)]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from data import encode  # noqa: E402
from layout import EOS  # noqa: E402
from model import TinyVlm  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from transformers import LlavaForConditionalGeneration  # noqa: E402

from mosaic_edge.world import Question, World, write_mp4  # noqa: E402

FIRST_SEED = 900  # training worlds have seeds above 2**20


def frames_from_mp4(world: World, seconds: int) -> NDArray[np.uint8]:
    """The runtime's path: encode, decode, take the frame on show at each full second, area-resize 192 to
    48.
    """
    import av

    frames: list[NDArray[np.uint8]] = []
    with tempfile.TemporaryDirectory() as folder:
        path = write_mp4(Path(folder) / "world.mp4", world)
        with av.open(str(path)) as container:
            for frame in container.decode(video=0):
                if frame.time is not None and frame.time >= len(frames) - 1e-6 and len(frames) < seconds:
                    image = frame.to_ndarray(format="rgb24").astype(np.float32)
                    small = image.reshape(48, 4, 48, 4, 3).mean((1, 3))
                    frames.append((small + 0.5).astype(np.uint8))
    return np.stack(frames)


@torch.no_grad()
def right_answers(model: TinyVlm, frames: NDArray[np.uint8], questions: list[Question]) -> list[bool]:
    """Which of `questions` the model answers in full (word, then <eos>) after `frames`, everything in its
    cache.
    """
    n = len(frames)
    shots = torch.from_numpy(frames).split(256)
    tokens = torch.cat([model.project(model.vision(s)) for s in shots])[None]
    with model.rounded():
        cache = model.video(tokens)
        coded = [encode(q.text, q.answer) for q in questions]
        words = torch.tensor([ids for ids, _ in coded])[None]
        positions = torch.arange(n * 16)[None]
        parts = [model.ask(cache, w, positions, torch.tensor([n * 16]))[0] for w in words.split(48, 1)]
    said = torch.cat(parts).argmax(-1)
    return [
        bool(said[i, size - 1] == ids[size] and said[i, size] == EOS) for i, (ids, size) in enumerate(coded)
    ]  # fmt: skip


def measure(
    model: TinyVlm, difficulty: str, frames: int, worlds: int, mp4: bool, first_seed: int = FIRST_SEED
) -> dict[str, tuple[int, int]]:
    """Kind -> (right, asked), with "all" among the kinds."""
    score: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for i in range(worlds):
        seed = first_seed + 1000 * frames + i
        world = World(seed, frames, difficulty)  # type: ignore[arg-type]
        shots = frames_from_mp4(world, frames) if mp4 else np.stack([world.render(t) for t in range(frames)])
        questions = world.questions(frames - 1, np.random.default_rng(seed), 48)
        if not questions:
            continue
        for q, ok in zip(questions, right_answers(model, shots, questions), strict=True):
            for kind in (q.kind, "all"):
                score[kind][0] += ok
                score[kind][1] += 1
    return {k: (r, n) for k, (r, n) in score.items()}


def main() -> None:
    """Print one line per difficulty, length and precision."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--frames", type=int, nargs="+", default=[32, 128, 256, 512])
    parser.add_argument("--questions", type=int, default=600, help="about how many per cell")
    parser.add_argument("--precision", nargs="+", default=["float", "int4"])
    parser.add_argument("--mp4", action="store_true", help="frames through an H.264 file")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    hf = LlavaForConditionalGeneration.from_pretrained(args.checkpoint, dtype=torch.float32).eval()
    rows = []
    for difficulty in ("plain", "lively"):
        for frames in args.frames:
            worlds = max(3, args.questions // min(48, max(6, frames // 4)))
            for precision in args.precision:
                score = measure(TinyVlm(hf, precision == "int4"), difficulty, frames, worlds, args.mp4)
                rows.append(
                    {"difficulty": difficulty, "frames": frames, "precision": precision, "score": score}
                )
                kinds = " ".join(
                    f"{k} {100 * r / n:.1f}" for k, (r, n) in sorted(score.items()) if k != "all"
                )
                right, asked = score["all"]
                share = 100 * right / asked
                print(
                    f"{difficulty:7}{frames:5} {precision:6}{share:6.1f} of {asked:4} | {kinds}", flush=True
                )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
