"""Models behind one protocol (vlm.py): ONNX graphs cut at their attention nodes, and the embedded tiny model."""
