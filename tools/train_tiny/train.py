"""Train mosaic-tiny from nothing: python tools/train_tiny/train.py --out DIR  (about 90 minutes on two
cores).

Interrupted, the same command goes on where it stood. DIR/float is the checkpoint, in transformers' layout.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "python"), str(Path(__file__).resolve().parent)]

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from data import Batch, labelled_frames, make_batch  # noqa: E402
from feed import feed  # noqa: E402
from layout import EOS, WORD_ID, build_model, save  # noqa: E402
from model import TinyVlm  # noqa: E402
from phases import GRADIENT_FRAMES, PHASES, TOWER_BATCH, TOWER_SHARE, TOWER_STEPS, Phase  # noqa: E402
from rich.progress import Progress  # noqa: E402
from torch import Tensor, nn  # noqa: E402


def log(text: str) -> None:
    """One line with the time, to stdout (redirect it to keep it)."""
    print(time.strftime("%H:%M:%S", time.gmtime()), text, flush=True)


def warm_up_tower(model: TinyVlm, bar: Progress) -> None:
    """Teach the tower alone: every token names its room and the shape and colour that lie on it."""
    width = model.hf.config.vision_config.hidden_size
    head = nn.Linear(width, 12 + 9 + 9)
    weights = [*model.hf.model.vision_tower.parameters(), *head.parameters()]
    optimiser = torch.optim.AdamW(weights, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.01)
    task = bar.add_task("tower", total=TOWER_STEPS)
    batches = feed(labelled_frames, ((seed, TOWER_BATCH) for seed in range(TOWER_STEPS)))
    for step, (frames, rooms, labels) in enumerate(batches):
        left = 1 - step / TOWER_STEPS
        optimiser.param_groups[0]["lr"] = 1.5e-3 * min(1, (step + 1) / 50, 2.5 * left + 0.02)
        room, shape, colour = head(model.vision(torch.from_numpy(frames))).split((12, 9, 9), -1)
        truth = torch.from_numpy(labels)
        loss = F.cross_entropy(room.flatten(0, 1), torch.from_numpy(rooms).repeat_interleave(16))
        loss = loss + F.cross_entropy(shape.flatten(0, 1), truth[..., 0].flatten())
        loss = loss + F.cross_entropy(colour.flatten(0, 1), truth[..., 1].flatten())
        _step(optimiser, loss, weights)
        bar.advance(task)
        if step % 100 == 99:
            hit = (shape.argmax(-1) == truth[..., 0])[truth[..., 0] > 0].float().mean()
            log(f"tower {step + 1} loss {loss.item():.4f} shape on object tokens {hit.item():.3f}")


def answer_loss(
    model: TinyVlm, batch: Batch, noise: float = 0.0, order_weight: float = 1.0
) -> tuple[Tensor, float, float]:
    """Cross-entropy of the answers (and, at a tenth, of the <eos> after them), and the share of right
    answers.
    """
    frames = torch.from_numpy(batch.frames)
    b, n = frames.shape[:2]
    with model.rounded(), torch.set_grad_enabled(n <= GRADIENT_FRAMES):
        cache = model.video(model.project(model.vision(frames.flatten(0, 1))).view(b, n, 16, -1))
    with model.rounded():
        group = torch.from_numpy(batch.group)
        if bool((group != torch.arange(n * 16)).any()):
            cache = cache.merged(group)
        if noise:
            cache = cache.noisy(noise)
        words, bias = torch.from_numpy(batch.words), torch.from_numpy(batch.bias)
        logits = model.ask(
            cache, words, torch.from_numpy(batch.positions), torch.from_numpy(batch.start), bias
        )
    size, answer = torch.from_numpy(batch.size), torch.from_numpy(batch.answer)
    at = (size - 1)[..., None, None].expand(-1, -1, 1, logits.shape[-1])
    said, after = logits.gather(2, at).flatten(0, 2), logits.gather(2, at + 1).flatten(0, 2)
    real = answer.flatten() >= 0
    eos = torch.where(real, EOS, -100)
    order = sum((words == WORD_ID[w]).any(-1) for w in ("first", "last")).flatten()
    weight = torch.where(real, 1 + (order_weight - 1) * order, 0)
    each = F.cross_entropy(said, answer.flatten(), reduction="none")
    loss = (each * weight).sum() / weight.sum().clamp_min(1) + 0.1 * F.cross_entropy(after, eos)
    right = said.argmax(-1) == answer.flatten()
    return loss, right[real].float().mean().item(), right[real & (order > 0)].float().mean().item()


def _step(optimiser: torch.optim.Optimizer, loss: Tensor, weights: list[nn.Parameter]) -> None:
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(weights, 1.0)
    optimiser.step()


def train_phase(model: TinyVlm, phase: Phase, first: int, bar: Progress, save_state: object) -> None:
    """One phase of the curriculum, from step `first`."""
    model.int4 = phase.int4
    tower = set(model.hf.model.vision_tower.parameters())
    weights = [p for p in model.hf.parameters() if p.requires_grad]
    groups = [[p for p in weights if p not in tower], [p for p in weights if p in tower]]
    optimiser = torch.optim.AdamW([{"params": g} for g in groups], betas=(0.9, 0.98), weight_decay=0.01)
    index = PHASES.index(phase)
    orders = ((phase.batch(1_000_000 * index + s),) for s in range(first, phase.steps))
    task = bar.add_task(phase.name, total=phase.steps, completed=first)
    right, order, began = 0.0, 0.0, time.time()
    for step, batch in enumerate(feed(make_batch, orders), first):
        warm = min(1.0, (step - first + 1) / 60)
        down = 0.03 + 0.97 * (0.5 + 0.5 * math.cos(math.pi * step / phase.steps)) if phase.decay else 1.0
        for group, share in zip(optimiser.param_groups, (1.0, TOWER_SHARE), strict=True):
            group["lr"] = phase.rate * share * warm * down
        loss, accuracy, ordered = answer_loss(model, batch, phase.noise * (step % 2), phase.order_weight)
        _step(optimiser, loss, weights)
        done = step - first + 1
        right += (accuracy - right) / min(done, 30)
        if ordered == ordered:  # not nan: there were such questions
            order += (ordered - order) / min(done, 30)
        bar.advance(task)
        if done % 25 == 0:
            pace = (time.time() - began) / done
            rates = f"right {right:.3f} order {order:.3f} {pace:.2f} s"
            log(f"{phase.name} {step + 1} loss {loss.item():.3f} {rates}")
        if done % 50 == 0:
            save_state(index, step + 1)  # type: ignore[operator]
        if min(right, order + 0.1) >= phase.target and done >= max(60, phase.steps // 4):
            break
    log(f"{phase.name} done at {step + 1}, right {right:.3f}")


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="where the checkpoint goes")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    args.out.mkdir(parents=True, exist_ok=True)
    state_file = args.out / "state.pt"
    model = TinyVlm(build_model())
    next_phase, next_step = -1, 0
    if state_file.exists():
        state = torch.load(state_file)
        model.hf.load_state_dict(state["weights"])
        next_phase, next_step = state["phase"], state["step"]
        log(f"resuming at phase {next_phase} step {next_step}")

    def save_state(phase: int, step: int) -> None:
        part = state_file.with_suffix(".part")
        torch.save({"weights": model.hf.state_dict(), "phase": phase, "step": step}, part)
        part.replace(state_file)
        save(model.hf, args.out / "float")

    with Progress(disable=not sys.stderr.isatty()) as bar:
        if next_phase < 0:
            warm_up_tower(model, bar)
            save_state(0, 0)
            next_phase = 0
        for index, phase in enumerate(PHASES):
            if index >= next_phase:
                train_phase(model, phase, next_step if index == next_phase else 0, bar, save_state)
                save_state(index + 1, 0)


if __name__ == "__main__":
    main()
