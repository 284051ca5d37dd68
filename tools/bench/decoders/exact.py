"""Does `full` answer as transformers does from a cache of its own? At 32 bits, to 1e-4 of a logit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from .cells import StreamRun
from .decoder import Decoder, Floats
from .narrated_vlm import NarratedVlm, asked
from .product import Engine
from .runner import REFERENCE, Runner
from .streams import Stream, make_stream

TOLERANCE = 1e-4
SENTENCES = 48


def check(folder: Path, sentences: int = SENTENCES, seed: int = 7) -> int:
    """Compare on one stream and say so; 1 where any logit differs by more than TOLERANCE."""
    stream = make_stream(sentences, seed)
    ours, theirs = both(folder, stream)
    worst = float(np.abs(ours - theirs).max())
    print(
        f"{folder.name}: full against transformers' cache, {sentences} sentences, {len(ours)} questions: "
        f"logits differ by at most {worst:.2e} (of {np.abs(theirs).max():.1f}); allowed {TOLERANCE:g}"
    )
    return int(worst > TOLERANCE)


def both(folder: Path, stream: Stream) -> tuple[Floats, Floats]:
    """Logits [questions, vocab] of the first answer tokens: through a session, and of transformers."""
    decoder = Decoder(folder, "fp32")
    settings = Runner(decoder, Path("unused"), {}).settings(stream, REFERENCE)
    ours = StreamRun(decoder, stream, settings).go()[1]
    return ours, transformers_logits(folder, decoder, stream)


def transformers_logits(folder: Path, decoder: Decoder, stream: Stream) -> Floats:
    """The same blocks through AutoModelForCausalLM and its DynamicCache; questions leave it again."""
    from transformers import AutoModelForCausalLM, DynamicCache

    model: Any = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32).eval()
    cache: Any = DynamicCache(config=model.config)

    def fed(text: str) -> torch.Tensor:
        ids = torch.tensor([decoder.ids(text)])
        with torch.inference_mode():
            return torch.as_tensor(
                model(input_ids=ids, past_key_values=cache, logits_to_keep=1).logits[0, -1]
            )

    spec = Engine(NarratedVlm(decoder, stream)).spec
    fed(spec.prefix)
    logits = []
    for number, sentence in enumerate(stream.sentences):
        fed(sentence)
        for question in (q for q in stream.questions if q.asked == number + 1):
            seen = cache.get_seq_length()
            logits.append(fed(spec.template.replace("{question}", asked(decoder, question))).numpy())
            cache.crop(seen - cache.get_seq_length())  # negative: so many tokens less
    return np.stack(logits)
