"""Formats of checkpoints that come quantised: what reads them, and whether that can be here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from mosaic_edge.models.vlm import ModelError

_EXTRA = ("accelerate", "bitsandbytes", "compressed_tensors", "torchao")
"""Modules that the extra `quantized` brings."""
_OURS = "'mosaic_edge[quantized]'"


@dataclass(frozen=True)
class Format:
    """What transformers reads a quant_method with."""

    modules: tuple[str, ...]
    needs_gpu: bool = False
    """It has no way to run on a CPU."""
    on_cpu: str = ""
    """What becomes of it there, if not what it is on a GPU."""


_GPU = True
FORMATS: Mapping[str, Format] = {
    "awq": Format(("gptqmodel", "accelerate")),
    "gptq": Format(("gptqmodel", "optimum")),
    "bitsandbytes": Format(("bitsandbytes", "accelerate")),
    "compressed-tensors": Format(("compressed_tensors",), on_cpu="unpacked to the type it was made of"),
    "torchao": Format(("torchao",)),
    "fp8": Format(("accelerate",), on_cpu="unpacked to bfloat16, twice its size"),
    "mxfp4": Format(("accelerate",), on_cpu="unpacked to bfloat16, four times its size"),
    "auto-round": Format(("auto_round",)),
    "hqq": Format(("hqq", "accelerate")),
    "quanto": Format(("optimum.quanto", "accelerate")),
    "aqlm": Format(("aqlm", "accelerate")),
    "fbgemm_fp8": Format(("fbgemm_gpu", "accelerate"), _GPU),
    "eetq": Format(("kernels", "accelerate"), _GPU),
    "higgs": Format(("flute", "accelerate"), _GPU),
    "vptq": Format(("vptq", "accelerate"), _GPU),
    "spqr": Format(("spqr_quant", "accelerate"), _GPU),
    "fp_quant": Format(("fp_quant",), _GPU),
}
"""By quant_method of quantization_config."""


def what_lacks(method: str, gpu: bool) -> str | None:
    """What a format needs that is not here, in one line; None where it can be read. gpu: there is one."""
    form = FORMATS.get(method)
    if form is None:
        return f"a format that is not known here; known are {', '.join(FORMATS)}"
    if form.needs_gpu and not gpu:
        return "a GPU: there is no way to run it on a CPU"
    missing = [module for module in form.modules if not _is_installed(module)]
    if not missing:
        return None
    named = ", ".join(module.replace("_", "-").replace("optimum.", "optimum-") for module in missing)
    ours = all(module in _EXTRA for module in missing)
    return f"{named}: pip install {_OURS if ours else named.replace(',', '')}"


def check_quantised(name: str, said: Mapping[str, Any], gpu: bool) -> None:
    """ModelError for weights in a form that cannot be read here, before one is. said: quantization_config."""
    if not said:
        return
    method = str(said.get("quant_method") or ("bitsandbytes" if _is_old_bitsandbytes(said) else ""))
    lacks = what_lacks(method, gpu)
    if lacks is not None:
        named = method or "no quant_method"
        raise ModelError(f"{name}: its weights are quantised ({named}), which needs {lacks}")


def unpack(model: Any) -> None:
    """compressed-tensors unpacks its weights in the first forward of a whole model; here its parts are
    called."""
    if hasattr(model, "ct_decompress_hook"):
        model.hf_quantizer.compressor.decompress_model(model)


def _is_old_bitsandbytes(said: Mapping[str, Any]) -> bool:
    """As checkpoints say it that were made before there was a quant_method."""
    return bool(said.get("load_in_4bit") or said.get("load_in_8bit"))


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of a package, one part
        return False
