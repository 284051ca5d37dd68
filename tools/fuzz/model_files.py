"""A case of model directories: files of the embedded model, in either layout, bytes, values and structure
changed by chance, keys that are read but were not there put in.

A mutated directory is whole but for one file or a few: `doctor` looks at it, then it is loaded, streamed into
and asked. A mutated document meets its table alone (models/schema.py), a few thousand a second. What is wrong
with a file is a ValueError of one line; nothing is ever written into the directory. What a child process said
of a tokenizer or template is kept for the next directory that has the same.
"""

from __future__ import annotations

import json
import random
import shutil
import warnings
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from cases import must
from mutations import mutated_bytes, mutated_json

import mosaic_edge.models
from mosaic_edge.engine import Engine
from mosaic_edge.models import load_model, prompt, tokenizer, weights_on_disk
from mosaic_edge.models.directory import read_json
from mosaic_edge.models.sandbox import limited
from mosaic_edge.models.schema import TABLES
from mosaic_edge.models.vlm import ModelError

if WITH_TORCH := find_spec("torch") is not None and find_spec("transformers") is not None:
    import torch

    import mosaic_edge.models.hf.vlm  # before cases are forked: it takes seconds

    torch.set_num_threads(1)

DOCUMENTS, DIRECTORIES = 60, 20
"""Of a case."""
TINY = Path(mosaic_edge.models.__file__).parent / "tiny"
ONNX_JSON = ("config.json", "mosaic.json", "genai_config.json", "preprocessor_config.json", "tokenizer.json")
FLOAT_JSON = (*(name for name in ONNX_JSON if name != "genai_config.json"), "generation_config.json",
              "tokenizer_config.json")  # fmt: skip
GRAPHS = ("decoder_model_merged_q4.onnx", "embed_tokens.onnx", "vision_encoder.onnx")

TEMPLATES = (
    b"", b"{{ question", b"{% for m in messages %}{{ m.content[-1].text }}{% endfor %}", b"\xff\xfe",
    b"{% for m in messages %}{% for c in m.content %}{% if c.type != 'text' %}<image>{% else %}"
    b"{{ c.text }}{% endif %}{% endfor %}{% endfor %}", b"{{ ''.__class__ }}", b"{{ 'a' * 10**9 }}",
    b"\x1b[2J{{ messages }}",
)  # fmt: skip


class Directory:
    """A copy of the embedded model, and its files as they were."""

    def __init__(self, folder: Path, transformers: bool) -> None:
        self.path, self.transformers = folder, transformers
        source = TINY / "float" if transformers else TINY
        shutil.copytree(source, folder, ignore=shutil.ignore_patterns("float", "__pycache__", "*.py"))
        self.files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        names = FLOAT_JSON if transformers else ONNX_JSON
        self.documents = {name: json.loads(self.files[folder / name]) for name in names}

    def restore(self) -> None:
        """As it was."""
        for path in list(self.path.rglob("*")):
            if path.is_symlink() or (path.is_file() and path not in self.files):
                path.unlink()
        for path, data in self.files.items():
            if not path.is_file() or path.read_bytes() != data:
                path.write_bytes(data)


def play(seed: int, folder: Path) -> Counter[str]:
    rng = random.Random(seed)
    done: Counter[str] = Counter()
    known: dict[Any, Any] = {}

    def limited_once(where: str, call: str, *given: Any) -> Any:
        said = Path(given[0]).read_bytes() if call == "tokenizer" else repr(given)
        if (call, said) not in known:
            known[call, said] = limited(where, call, *given)
        return known[call, said]

    tokenizer.limited = prompt.limited = limited_once
    copy = Directory(folder / "model", WITH_TORCH and rng.random() < 0.4)
    for _ in range(DOCUMENTS):
        done[try_document(rng, folder, copy.documents)] += 1
    for _ in range(DIRECTORIES):
        for _ in range(rng.choice([1, 1, 1, 2, 3])):
            mutate_a_file(rng, copy)
        done[try_model(copy)] += 1
        copy.restore()
    done["documents"] += DOCUMENTS
    done["directories"] += DIRECTORIES
    done["operations"] += DOCUMENTS + DIRECTORIES
    return done


def try_document(rng: random.Random, folder: Path, originals: dict[str, Any]) -> str:
    name = rng.choice([*originals, *TABLES])
    value = originals.get(name) or rng.choice(list(originals.values()))
    (folder / name).write_bytes(mutated_json(rng, value))
    try:
        read_json(folder / name)
        return "document, taken"
    except ModelError as error:
        must("\n" not in str(error) and name in str(error), error)
        return "document, refused"
    finally:
        (folder / name).unlink()


def try_model(copy: Directory) -> str:
    before = sorted((str(p), p.lstat().st_size) for p in copy.path.rglob("*"))
    kind = "transformers" if copy.transformers else "onnx"
    try:
        weights_on_disk(str(copy.path))
    except ValueError as error:
        must("\n" not in str(error) and str(error) != "", error)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            engine = Engine(load_model(copy.path, threads=1))
            with engine.session(memory="4MiB") as session:
                for i in range(2):
                    session.append(np.full((48, 48, 3), 40 * i, np.uint8), float(i))
                session.ask("what colour was the ball ?")
        return f"{kind}, asked"
    except (ValueError, MemoryError) as error:
        must("\n" not in str(error) and str(error) != "", error)
        return f"{kind}, refused"
    finally:
        must(sorted((str(p), p.lstat().st_size) for p in copy.path.rglob("*")) == before, "it was written to")


def mutate_a_file(rng: random.Random, copy: Directory) -> None:
    if rng.random() < 0.6:
        name = rng.choice(list(copy.documents))
        write(copy.path / name, mutated_json(rng, copy.documents[name]))
        return
    if rng.random() < 0.05:
        write(copy.path / "chat_template.jinja", rng.choice(TEMPLATES))
        return
    if copy.transformers and rng.random() < 0.1:
        index = {"weight_map": {"x": rng.choice(["model.safetensors", "../x", "none.safetensors", "", "."])}}
        write(copy.path / "model.safetensors.index.json", mutated_json(rng, index))
        return
    path = copy.path / ("model.safetensors" if copy.transformers else f"onnx/{rng.choice(GRAPHS)}")
    kind = rng.randrange(10)
    if kind < 2:
        path.unlink(missing_ok=True)
    if kind == 1:
        path.symlink_to(
            rng.choice(["/dev/zero", "/etc/passwd", "..", path.name, str(copy.path / "config.json")])
        )
    elif kind > 1 and copy.transformers:
        write(path, mutated_tensors(rng, copy.files[path]))
    elif kind > 1:
        write(path, mutated_bytes(rng, copy.files[path]))


def write(path: Path, data: bytes) -> None:
    path.unlink(missing_ok=True)  # it may be a link by now
    path.write_bytes(data)


def mutated_tensors(rng: random.Random, data: bytes) -> bytes:
    """safetensors whose header, rarely whose bytes, are not what they were."""
    if rng.random() < 0.2:
        return mutated_bytes(rng, data)
    end = 8 + int.from_bytes(data[:8], "little")
    header = mutated_json(rng, json.loads(data[8:end]))
    length = len(header) if rng.random() < 0.9 else rng.choice([0, 1, 1 << 40, (1 << 64) - 1])
    return length.to_bytes(8, "little") + header + data[end:]
