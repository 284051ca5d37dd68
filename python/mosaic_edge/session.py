"""Session: one stream of frames into a capped memory, and questions about it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from mosaic_edge import _core
from mosaic_edge.answering import Answering
from mosaic_edge.blocks import Blocks
from mosaic_edge.call_order import CallOrder
from mosaic_edge.config import SessionConfig
from mosaic_edge.held_policy import weakly_held
from mosaic_edge.models.vlm import EncodedFrame, FloatArray, FrameArray, PairVlm, Vlm
from mosaic_edge.open_sessions import hold_at_exit
from mosaic_edge.pictures import as_rgb
from mosaic_edge.question import asked_of, check_arguments, seconds
from mosaic_edge.reply import Reply, ReplyStream
from mosaic_edge.sampling import Sampler, SamplingParams
from mosaic_edge.shown import shown
from mosaic_edge.snapshot import Snapshot, begin, piped
from mosaic_edge.snapshot_file import replaced
from mosaic_edge.stream_state import StreamState
from mosaic_edge.trace import Trace

if TYPE_CHECKING:
    from mosaic_edge.sources.frame_source import FrameSource, Where

_LONGEST_GAP_SECONDS = 10 * 365 * 86400.0
"""Between two sources of one stream, which holds 31 years."""


class Session:
    """One stream: frames in, questions out, inside one cap. Calls from several threads take turns."""

    def __init__(self, model: Vlm, config: SessionConfig, saved: Snapshot | None = None) -> None:
        self._spec = model.spec
        self.config = config
        self._order = CallOrder()
        prefix = self._prefix = model.tokenize(self._spec.prefix) if self._spec.prefix else []
        self.note = None if saved is None else saved.note
        self._trace = Trace(config.trace)
        try:
            model_shape, memory, policy, *others = config.core_arguments(self._spec, len(prefix))
            if saved is not None:
                saved.check(model, config)
            reader: Any = None if saved is None else saved.reader
            core = _core.KvMemory(model_shape, memory, weakly_held(policy), *others, config.faults, reader)
            self._stream = StreamState.of(self._spec, len(prefix))
            if saved is not None:
                self._stream = StreamState.from_document(self._spec, saved.stream)
                self._stream.restore_pictures(self._spec, saved.stream, reader)
                saved.reader.finish()
        except BaseException:
            self._trace.discard()
            raise
        self._blocks = Blocks(model, core, config.backend, self._trace, len(prefix))
        if prefix and saved is None:
            self._blocks.read(prefix)
        hold_at_exit(self)

    @property
    def ending(self) -> bool:
        """While it is set an answer ends after the token in hand, with ValueError: a service is to end."""
        return self._order.ending

    @ending.setter
    def ending(self, ends: bool) -> None:
        self._order.ending = ends

    def append(self, frame: Any, pts: float | None = None) -> None:
        """Take in one RGB frame uint8 [H, W, 3] seen at `pts` seconds (default: a frame time after the last).
        A PIL image, a torch tensor, an encoded picture (bytes, a file) will do: pictures.py.

        Raises ValueError for a bad frame or falling pts, MemoryCapError when the policy refuses; then nothing
        is changed. Where two frames make a picture (Qwen-VL), the first is held until the second comes or a
        question does, and both are refused together.
        """
        image = as_rgb(frame)
        with self._order.turn(), self._order.step():
            self._blocks.settle()
            pts = self._stream.begin(pts)
            if self._spec.temporal_patch_size == 1:
                self._picture([image], [pts], 1)
            else:
                self._pair(image, pts)

    def _pair(self, image: FrameArray, pts: float) -> None:
        """Hold a frame until as many are there as make a picture; one of another size begins a new one."""
        if isinstance(self._blocks.model, PairVlm):
            self._blocks.model.check(*image.shape[:2])
        if not self._stream.held.fits(image):
            self._end_pair()
        if not self._stream.held.add(image, pts):
            self._stream.note_time([pts])
            return
        self._picture(*self._stream.held.take(), self._spec.temporal_patch_size)

    def _end_pair(self) -> None:
        """What is held becomes a picture, its last frame once more for those that are missing."""
        if count := len(self._stream.held):
            self._picture(*self._stream.held.take(), count)

    def _picture(self, images: list[FrameArray], times: list[float], count: int) -> None:
        """Take in the frames of one picture, of which `count` were seen and the others repeat the last."""
        image = images[0] if len(images) == 1 else np.stack(images)
        first = times[0]
        with self._trace.span("encode_frame"):
            elapsed = 0.0 if self._stream.first_pts is None else first - self._stream.first_pts
            middle = (first + times[-1]) / 2
            encoded = self._blocks.model.encode(image, middle, elapsed, self._stream.pictures)
        if not self._take(encoded, first):
            self._stream.duplicates += count
        else:
            self._stream.kept_picture = _picture_of(encoded)
            self._stream.pictures += 1
            self._stream.seen += len(encoded.tokens)
            self._stream.frames += count
        self._stream.note_time(times)

    def _take(self, encoded: EncodedFrame, pts: float) -> bool:
        """Run a frame through the decoder; False, and nothing taken, for a duplicate that would be taken."""
        with self._blocks.whole_or_nothing() as memory:
            memory.begin_frame(
                pts - self._stream.origin,
                encoded.embedding,
                len(encoded.tokens),
                encoded.columns,
                encoded.lead,
                encoded.trail,
                encoded.t_position,
            )
            if self._stream.is_alike(_picture_of(encoded), self.config.skip_alike):
                memory.abort()
                return False
            self._blocks.forward(encoded.tokens, want_logits=False)
            memory.commit()
            return True

    def append_video(
        self,
        path: Where,
        fps: float | None = None,
        *,
        start: float = 0.0,
        end: float | None = None,
        progress: Callable[[float, int], None] | None = None,
    ) -> int:
        """Stream a file (its path, its bytes, or open) or a camera at `fps` (default: the model's); returns
        how many frames went in.

        A video whose times do not lie behind the last frame's (another file) goes on a frame time after it.
        progress(pts seconds, frames) is called after every frame. Raises SourceError after what decodes.
        """
        from mosaic_edge.sources import open_source  # PyAV is for files only

        return self.append_frames(
            open_source(path, self._spec.fps if fps is None else fps, start, end), progress
        )

    def append_frames(self, source: FrameSource, progress: Callable[[float, int], None] | None = None) -> int:
        """Stream what gives frames, and close it; as append_video does. ValueError for what gives none."""
        if not hasattr(source, "__iter__") or not hasattr(source, "close"):
            raise ValueError(f"source={shown(source)}: expected a FrameSource, of Frames, with close()")
        count, shift = 0, 0.0
        with closing(source):
            for frame in source:
                if not hasattr(frame, "image") or not hasattr(frame, "pts"):
                    raise ValueError(f"source: gave {shown(frame)}; expected a Frame, with image and pts")
                if not count:
                    shift = self.shift_of(frame.pts)
                pts = frame.pts + shift
                self.append(frame.image, pts)
                count += 1
                if progress is not None:
                    progress(pts, count)
        return count

    def shift_of(self, first: float) -> float:
        """Seconds to add to the times of a source whose first frame has this one, so that it goes on behind
        what was seen: as they are, or a frame time after it where they lie before that, or years behind:
        then they are of another clock (seconds of a file, the time of day)."""
        last = self._stream.last_pts
        if last is None or last < first <= last + _LONGEST_GAP_SECONDS:
            return 0.0
        return self._stream.next_pts - first

    @overload
    def ask(
        self,
        question: str,
        *,
        stream: Literal[False] = ...,
        since: float | None = ...,
        dialogue: bool = ...,
        sampling: SamplingParams | None = ...,
        special_tokens: bool = ...,
    ) -> Reply: ...
    @overload
    def ask(
        self,
        question: str,
        *,
        stream: Literal[True],
        since: float | None = ...,
        dialogue: bool = ...,
        sampling: SamplingParams | None = ...,
        special_tokens: bool = ...,
    ) -> ReplyStream: ...
    def ask(
        self,
        question: str,
        *,
        stream: bool = False,
        since: float | None = None,
        dialogue: bool = False,
        sampling: SamplingParams | None = None,
        special_tokens: bool = False,
    ) -> Reply | ReplyStream:
        """Answer a question about anything seen so far, or seen from `since` seconds on.

        dialogue=True keeps question and answer readable for later questions; else nothing of it is left.
        stream=True gives a ReplyStream. sampling: how it is drawn; by default as the model's makers have it
        (SamplingParams.from_model), SamplingParams() is greedy. special_tokens=True: what reads like a
        control token of the model ("<|im_end|>") is one; else it is text. Raises ValueError for text the
        model does not know.
        """
        check_arguments(
            question, since, sampling, dialogue=dialogue, stream=stream, special_tokens=special_tokens
        )
        since = None if since is None else seconds(since, "since")
        sampling = SamplingParams.from_model(self._spec) if sampling is None else sampling
        with self._order.step():
            asked = asked_of(
                self._blocks.model, question, self._stream.talking, special_tokens, since, dialogue
            )
        self.check_room(len(asked.ids))
        answering = Answering(
            asked,
            Sampler(sampling, self._prefix + asked.ids),
            sampling.max_tokens,
            (self._blocks, self._stream, self._order),
            self._ready_to_answer,
            stream=stream,
        )
        if stream:
            return ReplyStream(answering.pieces(), lambda: answering.reply)
        for _ in answering.pieces():
            pass
        assert answering.reply is not None  # it was iterated to its end
        return answering.reply

    def _ready_to_answer(self) -> None:
        """Nothing is open, and every frame that was seen is part of what a question reads."""
        self._blocks.settle()
        self._end_pair()

    def check_room(self, tokens: int) -> None:
        """MemoryCapError where a question of so many tokens, with its template, leaves no room to answer."""
        if tokens >= self._blocks.branch_tokens:
            raise _core.MemoryCapError(
                f"question: {tokens} tokens with its template leave no room for an answer in "
                f"branch_tokens={self._blocks.branch_tokens}; raise it, or ask in fewer words"
            )

    def memory(self) -> dict[str, Any]:
        """Bytes by tier and part, where every token is; what was split, merged, collapsed, dropped, lost."""
        with self._order.step():
            stats: dict[str, Any] = self._blocks.open().stats()
            stats["frames"] = self._stream.frames
            stats["duplicate_frames"] = self._stream.duplicates
            stats["held_frames"] = len(self._stream.held)  # of a picture that is not whole yet
            return stats

    def save(self, path: str | Path, note: Any = None) -> None:
        """Write all that later answers depend on into one file, in place of the one before when it is whole
        and on the disk: Engine.restore(path) goes on from there. docs/saved-sessions.md.

        note: plain data of the caller's own, which the restored session has as `note`. ValueError while an
        answer is streamed, and for a policy's object without state() and set_state(); OSError where the
        disk is full, and then the file before is as it was and the session goes on.
        """
        with self._order.turn(), replaced(path) as descriptor:
            self._save(descriptor, note)

    def fork(self, policy: Any = None) -> Session:
        """Another session with the same content and settings, and a cap of its own; the two go on apart.
        It is saved into a pipe and restored from it: no third copy is made. policy: where it is an object,
        another one of its class. ValueError as save; MemoryCapError or DeviceError where there is no room."""
        config = replace(self.config, trace=None, policy=self.config.policy if policy is None else policy)
        with self._order.turn():
            return piped(self._save, lambda saved: Session(self._blocks.model, config, saved))

    def _save(self, descriptor: int, note: Any = None) -> None:
        with self._order.step():
            self._blocks.settle()
            writer = begin(descriptor, self._blocks.model, self.config, self._stream.document(), note)
            self._blocks.memory.save(writer)
            self._stream.save_pictures(writer)
            writer.finish()

    def check_invariants(self) -> None:
        """Recount everything; raises InvariantError on a defect. Slow."""
        with self._order.step():
            self._blocks.open().check_invariants()

    def close(self) -> None:
        """Give the memory back, once the frame or the token that another thread is at is through; an answer
        that goes on after it raises ValueError, as every call from now on. Closing twice is fine, and so is
        closing what a fork of the process has of it, which its own process does not notice."""
        self._blocks.is_closed = True  # before the lock: who holds it lets it go and takes it again
        if not self._order.is_in_its_process:
            self._blocks.close()
            return
        with self._order.lock:
            self._blocks.close()  # with its copy thread's last span
            self._trace.close()

    def hold(self, seconds: float) -> None:
        """For the end of the interpreter: wait until no thread is in a step of this session, `seconds` at
        most, and let none but the caller's begin another."""
        if self._order.is_in_its_process:
            self._order.lock.acquire(timeout=seconds)

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _picture_of(encoded: EncodedFrame) -> FloatArray:
    """The tokens of the picture, without the text around it."""
    return encoded.tokens[encoded.lead : len(encoded.tokens) - encoded.trail]
