"""Models as ONNX graphs: a decoder cut at its attention nodes, a vision encoder, an embedding (vlm.py)."""

import os

# Else ONNX Runtime (from 1.32 on) reports to its makers, from a thread which a fork of the process waits for
# when it ends. Read when it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
