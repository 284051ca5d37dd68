"""Fixtures that several files share."""

from __future__ import annotations

from videos import make_video as make_video
