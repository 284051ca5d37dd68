"""Memories of trained decoders: a narrated stream goes through sessions of the product, see cli.py.

A frame is a sentence, its picture is what the sentence says; a question asks where something was that was
said once. Nothing of the runtime is bypassed: frames are appended, questions asked, caps kept as for any
model.
"""
