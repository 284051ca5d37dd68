"""A session as a service: frames without end in, questions over a socket, the account in a file."""

from __future__ import annotations

from mosaic_edge.serve.live import stream_live

__all__ = ["stream_live"]
