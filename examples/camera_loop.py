"""A camera under a cap, and questions while it runs: python examples/camera_loop.py /dev/video0

Any source does: rtsp://..., video.mp4, 'gst:nvarguscamerasrc ! nvvidconv'. A line typed is a question.
"""

import sys
from threading import Thread

from mosaic_edge import Engine, open_live


def answer(session):
    for line in sys.stdin:
        try:
            reply = session.ask(line.strip())
        except ValueError as refused:  # a word that the model does not know
            print(refused)
            continue
        moments = ", ".join(f"{moment.start:.0f} to {moment.end:.0f} s" for moment in reply.evidence)
        print(f"{reply.text} (seen {moments})")


def main(where, memory="64MiB", fps=1.0):
    engine = Engine.load("mosaic-tiny")
    with engine.session(memory=memory) as session:
        listener = Thread(target=answer, args=[session], daemon=True)
        listener.start()
        for frame in open_live(where, fps, notify=lambda line: print(line, file=sys.stderr)):
            session.append(frame.image, frame.pts)
        listener.join()  # the source has ended; what is still asked is answered


if __name__ == "__main__":
    main(*sys.argv[1:])
