"""Prove that the training arithmetic is transformers': same logits from LlavaForConditionalGeneration, 4-D
mask given.

python tools/train_tiny/check_equal.py CHECKPOINT
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "python"), str(Path(__file__).resolve().parent)]

import torch  # noqa: E402
from data import Spec, make_batch  # noqa: E402
from layout import IMAGE, MEAN, STD, TOKENS_PER_FRAME, VIDEO_WINDOW  # noqa: E402
from model import TinyVlm  # noqa: E402
from torch import Tensor  # noqa: E402
from transformers import LlavaForConditionalGeneration  # noqa: E402


def runtime_mask(frames: int, words: int) -> Tensor:
    """[1, 1, S, S] additive: video tokens see VIDEO_WINDOW frames causally, words see all video and words
    before.
    """
    video = frames * TOKENS_PER_FRAME
    i, j = torch.arange(video + words)[:, None], torch.arange(video + words)
    recent = i // TOKENS_PER_FRAME - j // TOKENS_PER_FRAME < VIDEO_WINDOW
    allowed = (j <= i) & (recent | (i >= video))
    return torch.zeros(video + words, video + words).masked_fill(~allowed, torch.finfo(torch.float32).min)[
        None, None
    ]


@torch.no_grad()
def worst_difference(hf: LlavaForConditionalGeneration) -> float:
    """Largest absolute difference of the question's logits over a few clips."""
    model, worst = TinyVlm(hf), 0.0
    for n in (1, 3, 9):
        batch = make_batch(Spec(n, 2, 3, seed=n))
        frames, words = torch.from_numpy(batch.frames), torch.from_numpy(batch.words)
        tokens = model.project(model.vision(frames.flatten(0, 1))).view(2, n, TOKENS_PER_FRAME, -1)
        ours = model.ask(
            model.video(tokens), words, torch.from_numpy(batch.positions), torch.from_numpy(batch.start)
        )
        for b in range(2):
            pixels = (frames[b].float() / 255 - MEAN) / STD
            for q in range(words.shape[1]):
                size = int(batch.size[b, q]) + 1
                ids = torch.cat((torch.full((n * TOKENS_PER_FRAME,), IMAGE), words[b, q, :size]))[None]
                theirs = hf(
                    input_ids=ids,
                    pixel_values=pixels.permute(0, 3, 1, 2),
                    attention_mask=runtime_mask(n, size),
                    position_ids=torch.arange(ids.shape[1])[None],
                    use_cache=False,
                ).logits[0, -size:]
                worst = max(worst, (theirs - ours[b, q, :size]).abs().max().item())
    return worst


if __name__ == "__main__":
    difference = worst_difference(LlavaForConditionalGeneration.from_pretrained(sys.argv[1]).eval())
    print(f"largest difference of the logits: {difference:.2e}")
    sys.exit(difference > 1e-3)
