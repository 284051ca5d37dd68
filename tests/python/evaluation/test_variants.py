"""What a row is about, as written on the command line: caps, policies with settings."""

from __future__ import annotations

import pytest

from mosaic_edge import _core
from mosaic_edge.cli.eval import default_policies
from mosaic_edge.config import SessionConfig
from mosaic_edge.evaluation.runner import EvalSettings
from mosaic_edge.evaluation.variants import Cap, parse_caps, parse_policies, parse_variant


@pytest.mark.parametrize(
    ("text", "caps"),
    [
        ("10%", [Cap(share=0.1)]),
        ("100%,25%,2.5%", [Cap(share=1.0), Cap(share=0.25), Cap(share=0.025)]),
        (" 5 % , 5%", [Cap(share=0.05)]),
        ("200%,512KiB, 1.5 MiB", [Cap(share=2.0), Cap(size=512 << 10), Cap(size=3 << 19)]),
    ],
)
def test_caps_are_shares_and_sizes(text: str, caps: list[Cap]) -> None:
    assert list(parse_caps(text)) == caps


@pytest.mark.parametrize(
    "text", ["", "10", "0%", "-5%", "ten%", "10%,,5%", "10%%", "nan%", "5000%", "0KiB", "5QiB"]
)
def test_what_is_no_cap_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match="caps="):
        parse_caps(text)


def test_a_cap_knows_its_bytes_its_share_and_its_name() -> None:
    assert (Cap(share=0.025).bytes_of(1000), Cap(share=0.025).label) == (25, "2.5%")
    assert (Cap(size=512).bytes_of(1000), Cap(size=512).share_of(1024), Cap(size=2048).label) == (
        512,
        0.5,
        "2.0 KiB",
    )


def test_a_variant_sorts_its_settings_into_memory_knobs_and_policy_settings() -> None:
    first, second, third = parse_policies(
        "mosaic, mosaic[ score=dot ;packed=int8;summaries=0;alpha=1.5],window,mosaic"
    )
    assert (first.label, first.policy_settings, first.session) == ("mosaic", {}, {})
    assert second.policy == "mosaic"
    assert second.policy_settings == {"score": "dot", "alpha": 1.5}
    assert second.session == {"packed": "int8", "summaries": False}
    assert second.label == "mosaic[packed=int8;summaries=false;score=dot;alpha=1.5]"
    assert parse_variant(second.label) == second
    assert third.label == "window"


@pytest.mark.parametrize(
    "text",
    [
        "", "nope", "mosaic,", "mosaic[a=1", "mosaic[a]", "mosaic[=1]", "mosaic[a=]", "mosaic[a=1;a=2]",
        "mosaic[]", "mosaic[memory=1MiB]", "mosaic[disk=1MiB]", "mosaic[summaries=3]", "mosaic[scenes=few]",
        "mosaic[scenes=1.5]",
    ],
)  # fmt: skip
def test_what_is_no_variant_is_refused_with_a_line_that_says_why(text: str) -> None:
    with pytest.raises(ValueError, match=r"polic(y|ies)="):
        parse_policies(text)


def test_policies_by_default_are_all_there_are_and_a_few_with_quick() -> None:
    known = _core.policies()
    assert default_policies(known, False) == ",".join(["full", *(name for name in known if name != "full")])
    quick = default_policies(known, True).split(",")
    assert quick[0] == "full"
    assert set(quick) == {
        "full",
        "window",
        "uniform",
        SessionConfig().policy,
    }
    assert [variant.policy for variant in EvalSettings().policies] == list(_core.policies())
