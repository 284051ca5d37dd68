"""Models of transformers: attention handed to the memory through its own registry (vlm.py)."""
