"""All that this bench takes from the package besides the protocol of models."""

from mosaic_edge._core import __file__ as CORE_FILE

from mosaic_edge import Engine, MemoryCapError
from mosaic_edge.engine import Reply, Session
from mosaic_edge.evaluation.variants import Variant, parse_caps, parse_variant
from mosaic_edge.sampling import SamplingParams

__all__ = [
    "CORE_FILE",
    "Engine",
    "MemoryCapError",
    "Reply",
    "SamplingParams",
    "Session",
    "Variant",
    "parse_caps",
    "parse_variant",
]
