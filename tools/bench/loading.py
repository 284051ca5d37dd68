"""What reading a checkpoint takes at most: `python tools/bench/loading.py [--gib 1]`.

A LLaVA of random weights is written in shards of 200 MB as float32, bfloat16 and float16 (which a CPU reads
as float32); then again to be converted: float32 to bfloat16, two to int8. Each is loaded by Engine.load in a
process of its own, which says what its resident memory was before, and at most up to the end of the load.
Weights: what the parameters take as they are afterwards, scales of int8 included. Exit code 1 where the peak
is over the weights and a tenth.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

MIB = 1 << 20
SHARD = "200MB"
WIDTH = 1024
CASES = (
    ("fp32", {}),
    ("bf16", {}),
    ("fp16", {}),
    ("fp32", {"dtype": "bf16"}),
    ("bf16", {"quantization": "int8"}),
    ("fp16", {"quantization": "int8"}),
)
"""What the files hold, and how they are read."""

LOAD = """
import gc, json, sys
import torch, transformers
import torchao.quantization
import mosaic_edge.models.hf.vlm
from mosaic_edge import Engine

def resident(name):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(name))

with open("/proc/self/clear_refs", "w") as peak:
    peak.write("5")  # the peak so far is forgotten
before = resident("VmRSS")
def parts(x):  # a tensor of torchao is made of several
    names = x.__tensor_flatten__()[0] if hasattr(x, "__tensor_flatten__") else []
    return [y for name in names for y in parts(getattr(x, name))] or [x]

engine = Engine.load(sys.argv[1], device="cpu", threads=1, **json.loads(sys.argv[2]))
peak = resident("VmHWM")
gc.collect()
model = engine.model.family.whole
print(json.dumps({
    "weights": sum(p.numel() * p.element_size() for x in model.parameters() for p in parts(x.data)),
    "peak": peak - before, "after": resident("VmRSS") - before,
    "type": str(engine.model.family.model.dtype).removeprefix("torch."),
}))
"""


def write(folder: Path, dtype: str, gib: float) -> None:
    """A checkpoint of about so many GiB, in the type of `dtype`."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "material"))
    import torch
    import transformers as tf

    from checked_models import CLIP, TEMPLATE, clip_images
    from fixtures_hf import ID, TEXT, rope, tokenizer

    torch_type = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    layer = WIDTH * (2 * WIDTH + 2 * WIDTH // 4 + 3 * 4 * WIDTH)  # parameters
    layers = max(1, round(gib * (1 << 30) / torch_type.itemsize / layer))
    text = TEXT | dict(
        model_type="llama", hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=layers,
        num_attention_heads=16, num_key_value_heads=4, head_dim=64,
    )  # fmt: skip
    config = tf.LlavaConfig(
        vision_config=CLIP, text_config=text | rope(1e4), image_token_index=ID["<image>"],
        tie_word_embeddings=False, dtype=torch_type,
    )  # fmt: skip
    with torch.device("meta"):
        model = tf.LlavaForConditionalGeneration(config)
    model = model.to(torch_type).to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.03, 0.03)
    model.generation_config.eos_token_id = 1
    model.save_pretrained(folder, max_shard_size=SHARD)
    tokenizer(TEMPLATE).save_pretrained(folder)
    clip_images().save_pretrained(folder)


def measured(folder: Path, how: dict[str, str]) -> dict[str, Any]:
    """What a process that loads it says."""
    command = [sys.executable, "-c", LOAD, str(folder), json.dumps(how)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"loading {folder} failed: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main() -> int:
    """A table; 1 where a load took over a tenth more than its weights."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gib", type=float, default=1.0, help="of each checkpoint's files")
    parser.add_argument("--cases", default="0,1,2,3,4,5", help="which of the six")
    args = parser.parse_args()
    print("| files | read as | shards | files, MiB | weights, MiB | peak, MiB | peak / weights |")
    print("|---|---|---|---|---|---|---|")
    over = False
    for case in map(int, args.cases.split(",")):
        dtype, how = CASES[case]
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder), dtype, args.gib)
            shards = sorted(Path(folder).glob("*.safetensors"))
            stored = sum(shard.stat().st_size for shard in shards)
            found = measured(Path(folder), how)
        weights, peak = found["weights"], found["peak"]
        over |= peak > 1.1 * weights
        read = ", ".join([found["type"], *how.get("quantization", "").split()])
        numbers = f"{stored / MIB:,.0f} | {weights / MIB:,.0f} | {peak / MIB:,.0f} | {peak / weights:.2f}"
        print(f"| {dtype} | {read} | {len(shards)} | {numbers} |", flush=True)
    return int(over)


if __name__ == "__main__":
    sys.exit(main())
