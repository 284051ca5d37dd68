"""A case of model directories: files of the embedded model, in either layout, bytes, values and structure
changed by chance, keys that are read but were not there put in.

A mutated directory is whole but for one file or a few: `doctor` looks at it, then it is loaded, streamed into
and asked. A mutated document meets its table alone (models/schema.py), a few thousand a second. What is wrong
with a file is a ValueError of one line; nothing is ever written into the directory. What a child process said
of a tokenizer or template is kept for the next directory that has the same. Most directories are of one layer
(one_layer.py), one in ten is the whole model; one in six is for transformers, which takes four times as long.
"""

from __future__ import annotations

import json
import random
import shutil
import tempfile
import warnings
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from cases import must
from mutations import mutated_bytes, mutated_json
from one_layer import TINY, write_one_layer

from mosaic_edge.engine import Engine
from mosaic_edge.models import load_model, prompt, tokenizer, weights_on_disk
from mosaic_edge.models.directory import read_json
from mosaic_edge.models.sandbox import limited
from mosaic_edge.models.schema import TABLES
from mosaic_edge.models.vlm import ModelError

if WITH_TORCH := find_spec("torch") is not None and find_spec("transformers") is not None:
    import torch

    torch.set_num_threads(1)

DOCUMENTS, DIRECTORIES = 100, 50
"""Of a case."""
OF_TRANSFORMERS, WHOLE = 1 / 6, 1 / 10
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


@dataclass(frozen=True)
class Base:
    """A model's files as they are before anything is changed."""

    transformers: bool
    files: dict[str, bytes]

    @classmethod
    def read(cls, folder: Path, transformers: bool) -> Base:
        paths = [p for p in folder.rglob("*") if p.is_file() and p.suffix != ".py"]
        names = {str(p.relative_to(folder)): p for p in paths}
        kept = {n: p.read_bytes() for n, p in names.items() if transformers or not n.startswith("float/")}
        return cls(transformers, kept)

    @cached_property
    def documents(self) -> dict[str, Any]:
        names = FLOAT_JSON if self.transformers else ONNX_JSON
        return {name: json.loads(self.files[name]) for name in names}


BASES: dict[tuple[bool, bool], Base] = {}
"""By whether transformers loads it and whether it is the whole model."""
SAID: dict[tuple[str, bytes | str], Any] = {}
"""What child processes said of a tokenizer or a template."""


def prepare() -> None:
    """Read the bases, and load each once: imports, and what is said of what was not changed."""
    tokenizer.limited = prompt.limited = limited_once
    with tempfile.TemporaryDirectory() as folder:
        for transformers in (False, True)[: 1 + WITH_TORCH]:
            small = write_one_layer(Path(folder, f"{transformers}"), transformers)
            whole = TINY / "float" if transformers else TINY
            for path in (small, whole):
                base = BASES[transformers, path == whole] = Base.read(path, transformers)
                copy = Directory(base, Path(folder, "copy"))
                must(try_model(copy).endswith("asked"), f"{path} as it is")
                shutil.rmtree(copy.path)


class Directory:
    """A copy of a base, and what of it was changed."""

    def __init__(self, base: Base, folder: Path) -> None:
        self.base, self.path = base, folder
        self.changed = set(base.files)
        self.restore()

    def restore(self) -> None:
        """As it was."""
        for name in self.changed:
            path = self.path / name
            path.unlink(missing_ok=True)
            if name in self.base.files:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(self.base.files[name])
        self.changed.clear()

    def write(self, name: str, data: bytes) -> None:
        self.unlink(name).write_bytes(data)

    def unlink(self, name: str) -> Path:
        self.changed.add(name)
        path = self.path / name
        path.unlink(missing_ok=True)  # not written through: it may be a link by now
        return path


def limited_once(where: str, call: str, *given: Any) -> Any:
    said = Path(given[0]).read_bytes() if call == "tokenizer" else repr(given)
    if (call, said) not in SAID:
        SAID[call, said] = limited(where, call, *given)
    return SAID[call, said]


def play(seed: int, folder: Path) -> Counter[str]:
    rng = random.Random(seed)
    done: Counter[str] = Counter()
    base = BASES[WITH_TORCH and rng.random() < OF_TRANSFORMERS, rng.random() < WHOLE]
    copy = Directory(base, folder / "model")
    for _ in range(DOCUMENTS):
        done[try_document(rng, folder, base.documents)] += 1
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
    kind = "transformers" if copy.base.transformers else "onnx"
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
    documents, transformers = copy.base.documents, copy.base.transformers
    if rng.random() < 0.6:
        name = rng.choice(list(documents))
        copy.write(name, mutated_json(rng, documents[name]))
        return
    if rng.random() < 0.05:
        copy.write("chat_template.jinja", rng.choice(TEMPLATES))
        return
    if transformers and rng.random() < 0.1:
        index = {"weight_map": {"x": rng.choice(["model.safetensors", "../x", "none.safetensors", "", "."])}}
        copy.write("model.safetensors.index.json", mutated_json(rng, index))
        return
    name = "model.safetensors" if transformers else f"onnx/{rng.choice(GRAPHS)}"
    kind = rng.randrange(10)
    if kind == 0:
        copy.unlink(name)
    elif kind == 1:
        links = ["/dev/zero", "/etc/passwd", "..", Path(name).name, str(copy.path / "config.json")]
        copy.unlink(name).symlink_to(rng.choice(links))
    else:
        mutated = mutated_tensors if transformers else mutated_bytes
        copy.write(name, mutated(rng, copy.base.files[name]))


def mutated_tensors(rng: random.Random, data: bytes) -> bytes:
    """safetensors whose header, rarely whose bytes, are not what they were."""
    if rng.random() < 0.2:
        return mutated_bytes(rng, data)
    end = 8 + int.from_bytes(data[:8], "little")
    header = mutated_json(rng, json.loads(data[8:end]))
    length = len(header) if rng.random() < 0.9 else rng.choice([0, 1, 1 << 40, (1 << 64) - 1])
    return length.to_bytes(8, "little") + header + data[end:]
