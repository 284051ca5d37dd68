"""What a session makes of a user's own checkpoint and clip, with a cap that holds all, against what the plain
script of its library makes of the same frames.

clip.py     the frames and the question
watched.py  a session, and what its model is given and gives
script.py   the plain transformers script: AutoProcessor, generate
positions.py where tokens stand
checkpoint.py, graphs.py  the two layouts, a Row for each thing compared
"""
