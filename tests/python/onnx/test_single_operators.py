"""Attention that an exporter took apart is recognised, proven by running it, and cut; what it is not is
refused."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from mosaic_edge.models.onnx.cut import cut
from mosaic_edge.models.onnx.sites import GraphCutError
from scripted_decoders import Scripted, export
from uncut_decoder import assert_same

HINTS = {"rope_theta": 1e4, "num_attention_heads": 4, "num_key_value_heads": 2}


@pytest.mark.parametrize(
    "how",
    [
        Scripted(),
        Scripted(fused=True),
        Scripted(kv_heads=4, layers=3),
        Scripted(norm=True, theta=5e5),
        Scripted(scale=0.1),
        Scripted(fused=True, scale=0.1),
        Scripted(gain=1.25),
        Scripted(q_heads=6, kv_heads=1, head_dim=8),
    ],
    ids=str,
)
def test_attention_of_single_operators_gives_the_uncut_logits(how: Scripted) -> None:
    model = export(how)
    operators = Counter(node.op_type for node in model.graph.node)
    assert operators["Softmax"] == how.layers and not operators["Attention"]
    facts = assert_same(model).facts
    assert (facts.q_heads, facts.kv_heads, facts.head_dim) == (how.q_heads, how.kv_heads, how.head_dim)
    # Tables with a factor are read back as frequencies.
    steps = np.arange(0, how.head_dim, 2) / how.head_dim
    found = facts.rope.frequencies or facts.rope.theta**-steps
    np.testing.assert_allclose(found, how.theta**-steps, rtol=5e-3)
    assert bool(facts.rope.frequencies) == (how.gain != 1)
    usual = how.scale or how.head_dim**-0.5
    assert facts.scale == pytest.approx(usual * how.gain**2, rel=1e-4)


@pytest.mark.parametrize("fused", [False, True])
def test_positions_in_time_row_and_column_are_told_apart_by_running_them(fused: bool) -> None:
    how = Scripted(sections=(2, 3, 3), theta=1e6, fused=fused)
    facts = assert_same(export(how), multi=True).facts
    assert facts.rope.sections == (2, 3, 3) and not facts.rope.sections_interleaved


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(
    ("how", "why"),
    [
        (dict(window=3), "is not the causal mask: it masks otherwise"),
        (dict(window=100), "is not the causal mask: it is a window"),
        (dict(leaks=True), "is not the causal mask: it masks otherwise"),
        (dict(halved=True), "run alone it is no causal attention"),
        (dict(apart=True), "it is rotated otherwise than the first layer"),
    ],
)
def test_what_a_memory_would_compute_otherwise_is_refused(how: dict[str, int], why: str, fused: bool) -> None:
    with pytest.raises(GraphCutError, match=f"MatMul .*attention made of single operators: .*{why}"):
        cut(export(Scripted(**how, fused=fused)), HINTS)  # type: ignore[arg-type]


def test_an_order_of_operators_that_is_not_known_is_named() -> None:
    model = export(Scripted())
    for node in model.graph.node:
        if node.op_type == "Softmax":
            node.op_type = "LogSoftmax"
    with pytest.raises(GraphCutError, match=r"takes past_key_values\.0\.key: .* in no known order"):
        cut(model, HINTS)
