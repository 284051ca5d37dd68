"""A network camera that misbehaves as it is told, in a process of its own.

    with camera("rtsp", [[{"frames": 50, "fps": 25}, {"stall": 60}], [{"frames": 9}]]) as url: ...

Each list is a connection: it sends that many frames (fps 0 or none: as fast as they go), says nothing for so
many seconds, and hangs up at its end. The next begins with a new clock; so does what follows, at
{"clock": ticks}. Frames carry their number (numbered.py), which goes on. After the last connection nobody is
there. Kinds: "rtsp" (RTP over the connection), "tcp" (MPEG-TS), "http" (MJPEG: pictures without times).
log: a file of a double for every frame, when it was sent by time.monotonic(), which all processes share.
"""

from __future__ import annotations

import base64
import io
import json
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import av

from numbered import HEIGHT, WIDTH, numbered

GOP = 5
Plan = list[list[dict[str, float]]]
Send = Callable[[av.Packet, int], None]


@contextmanager
def camera(kind: str, plan: Plan, log: Path | None = None) -> Iterator[str]:
    """Its URL, while the process lives."""
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, __file__, kind, json.dumps(plan), str(log or os.devnull)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": paths},
        text=True,
    )
    try:
        assert process.stdout is not None
        yield f"{kind}://127.0.0.1:{int(process.stdout.readline())}" + ("" if kind == "tcp" else "/cam")
    finally:
        process.kill()
        process.wait()
        process.stdout.close()  # type: ignore[union-attr]


def encoder(codec: str, pixels: str) -> av.VideoCodecContext:
    made: Any = av.CodecContext.create(codec, "w")
    made.width, made.height, made.pix_fmt, made.framerate = WIDTH, HEIGHT, pixels, 25
    made.time_base, made.gop_size = Fraction(1, 90000), GOP
    if codec == "libx264":
        made.options = {"preset": "ultrafast", "tune": "zerolatency"}
    return made


def to_mpegts(peer: socket.socket) -> Send:
    class Wire(io.RawIOBase):
        def writable(self) -> bool:
            return True

        def write(self, data: Any) -> int:
            peer.sendall(data)
            return len(data)

    out = av.open(Wire(), "w", format="mpegts", options={"flush_packets": "1"})
    stream: Any = out.add_stream("libx264", rate=25)
    stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"

    def send(packet: av.Packet, ticks: int) -> None:
        packet.stream = stream
        out.mux(packet)

    return send


def to_mjpeg(peer: socket.socket) -> Send:
    peer.recv(65536)
    peer.sendall(b"HTTP/1.0 200 OK\r\nContent-Type: multipart/x-mixed-replace;boundary=frame\r\n\r\n")

    def send(packet: av.Packet, ticks: int) -> None:
        head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {packet.size}\r\n\r\n"
        peer.sendall(head.encode() + bytes(packet) + b"\r\n")

    return send


def nal_units(data: bytes) -> list[bytes]:
    return [unit for piece in data.split(b"\0\0\1") if (unit := piece.rstrip(b"\0"))]


def to_rtsp(peer: socket.socket) -> Send:
    made = encoder("libx264", "yuv420p")
    made.options = {**made.options, "x264-params": "annexb=1"}
    first = b"".join(bytes(p) for p in made.encode(av.VideoFrame(WIDTH, HEIGHT, "yuv420p")))
    sets = ",".join(base64.b64encode(u).decode() for u in nal_units(first) if u[0] & 31 in (7, 8))
    sdp = (
        "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=camera\r\nt=0 0\r\nm=video 0 RTP/AVP 96\r\na=control:video\r\n"
        f"a=rtpmap:96 H264/90000\r\na=fmtp:96 packetization-mode=1;sprop-parameter-sets={sets}\r\n"
    )
    answers = {
        "OPTIONS": "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN\r\n\r\n",
        "DESCRIBE": f"Content-Type: application/sdp\r\nContent-Length: {len(sdp)}\r\n\r\n{sdp}",
        "SETUP": "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\nSession: 7\r\n\r\n",
        "PLAY": "Session: 7\r\n\r\n",
    }
    asked, method = b"", ""
    while method != "PLAY":
        while b"\r\n\r\n" not in asked:
            more = peer.recv(4096)
            if not more:
                raise ConnectionError("gone before it played")
            asked += more
        head, _, asked = asked.partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        method = lines[0].split()[0]
        number = next(line for line in lines if line.lower().startswith("cseq"))
        peer.sendall(f"RTSP/1.0 200 OK\r\n{number}\r\n{answers[method]}".encode())
    count = 0

    def send(packet: av.Packet, ticks: int) -> None:
        nonlocal count
        units = nal_units(bytes(packet))
        for unit in units:
            marker = 0x80 if unit is units[-1] else 0
            rtp = struct.pack(">BBHII", 0x80, 96 | marker, count & 0xFFFF, ticks & 0xFFFFFFFF, 1) + unit
            peer.sendall(b"$\0" + struct.pack(">H", len(rtp)) + rtp)
            count += 1

    return send


KINDS = {
    "tcp": (to_mpegts, "libx264", "yuv420p"),
    "rtsp": (to_rtsp, "libx264", "yuv420p"),
    "http": (to_mjpeg, "mjpeg", "yuvj420p"),
}


def serve(kind: str, plan: Plan, log: BinaryIO) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    speak, codec, pixels = KINDS[kind]
    number = 0
    for i, acts in enumerate(plan):
        peer, _ = listener.accept()
        if i == len(plan) - 1:
            listener.close()
        with peer, suppress(OSError):
            send, encode, clock = speak(peer), encoder(codec, pixels), 0
            for act in acts:
                due = time.monotonic()
                clock = int(act.get("clock", clock))
                for _ in range(int(act.get("frames", 0))):
                    frame = av.VideoFrame.from_ndarray(numbered(number % 1024), format="rgb24")
                    frame = frame.reformat(format=pixels)
                    frame.pts, number, clock = clock, number + 1, clock + 3600
                    for packet in encode.encode(frame):
                        send(packet, int(packet.pts or 0))
                    log.write(struct.pack("d", time.monotonic()))
                    if act.get("fps"):
                        due += 1 / act["fps"]
                        time.sleep(max(0.0, due - time.monotonic()))
                if act.get("stall"):  # until who listens has had enough
                    peer.settimeout(act["stall"])
                    while peer.recv(4096):
                        pass


if __name__ == "__main__":
    with Path(sys.argv[3]).open("wb", buffering=0) as sent:
        serve(sys.argv[1], json.loads(sys.argv[2]), sent)
