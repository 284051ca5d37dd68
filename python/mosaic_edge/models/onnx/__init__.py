"""Models as ONNX graphs: a decoder cut at its attention nodes, a vision encoder, an embedding (vlm.py)."""
