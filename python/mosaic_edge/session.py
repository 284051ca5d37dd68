"""Session: one stream of frames into a capped memory, and questions about it."""

from __future__ import annotations

import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from mosaic_edge import _core
from mosaic_edge.answer_text import AnswerText
from mosaic_edge.config import SessionConfig
from mosaic_edge.evidence import time_ranges
from mosaic_edge.held_policy import weakly_held
from mosaic_edge.memory_attend import MemoryAttend
from mosaic_edge.models.vlm import EncodedFrame, FloatArray, FrameArray, PairVlm, Vlm
from mosaic_edge.open_sessions import hold_at_exit
from mosaic_edge.pictures import as_rgb
from mosaic_edge.question import check_arguments, question_tokens, seconds, template_tokens
from mosaic_edge.reply import Reply, ReplyStream
from mosaic_edge.sampling import Sampler, SamplingParams
from mosaic_edge.snapshot import Snapshot, begin, piped
from mosaic_edge.snapshot_file import replaced
from mosaic_edge.stream_state import StreamState
from mosaic_edge.trace import Trace

if TYPE_CHECKING:
    from mosaic_edge.sources.frame_source import FrameSource, Where


class Session:
    """One stream: frames in, questions out, inside one cap. Calls from several threads take turns."""

    def __init__(self, model: Vlm, config: SessionConfig, saved: Snapshot | None = None) -> None:
        self._model = model
        self._spec = model.spec
        self.config = config
        self._process = os.getpid()
        self._lock = threading.RLock()  # one call into the core at a time
        # One frame or answer at a time; whichever thread ends an answer releases it.
        self._turn = threading.Lock()
        self._turn_of: int | None = None
        self._streaming = self._is_closed = False
        self.ending = False
        """While it is set an answer ends after the token in hand, with ValueError: a service is to end."""
        prefix = self._prefix = model.tokenize(self._spec.prefix) if self._spec.prefix else []
        self.note = None if saved is None else saved.note
        self._trace = Trace(config.trace)
        try:
            model_shape, memory, policy, *others = config.core_arguments(self._spec, len(prefix))
            if saved is not None:
                saved.check(model, config)
            reader: Any = None if saved is None else saved.reader
            self._memory: Any = _core.KvMemory(
                model_shape, memory, weakly_held(policy), *others, config.faults, reader
            )
            self._stream = StreamState.of(self._spec, len(prefix))
            if saved is not None:
                self._stream = StreamState.from_document(self._spec, saved.stream)
                self._stream.restore_pictures(self._spec, saved.stream, reader)
                saved.reader.finish()
        except BaseException:
            self._trace.discard()
            raise
        self._branch_tokens: int = self._memory.plan()["branch_tokens"]
        most = max(self._spec.tokens_per_frame, self._branch_tokens, len(prefix))
        self._out: FloatArray = np.empty((most, self._spec.q_heads, self._spec.head_dim), np.float32)
        self._attend: MemoryAttend | None = MemoryAttend(self._memory, self._out, self.config.backend)
        if prefix and saved is None:
            self._block(model.embed_text(prefix), want_logits=False)
        hold_at_exit(self)

    def append(self, frame: Any, pts: float | None = None) -> None:
        """Take in one RGB frame uint8 [H, W, 3] seen at `pts` seconds (default: a frame time after the last).
        A PIL image, a torch tensor, an encoded picture (bytes, a file) will do: pictures.py.

        Raises ValueError for a bad frame or falling pts, MemoryCapError when the policy refuses; then nothing
        is changed. Where two frames make a picture (Qwen-VL), the first is held until the second comes or a
        question does, and both are refused together.
        """
        image = as_rgb(frame)
        with self._my_turn(), self._alone():
            self._settle()
            pts = self._stream.begin(pts)
            if self._spec.temporal_patch_size == 1:
                self._picture([image], [pts], 1)
            else:
                self._pair(image, pts)

    def _pair(self, image: FrameArray, pts: float) -> None:
        """Hold a frame until as many are there as make a picture; one of another size begins a new one."""
        if isinstance(self._model, PairVlm):
            self._model.check(*image.shape[:2])
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
            encoded = self._model.encode(image, (first + times[-1]) / 2, elapsed, self._stream.pictures)
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
        with self._block_or_nothing() as memory:
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
            self._forward(encoded.tokens, want_logits=False)
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
        """Stream what gives frames, and close it; as append_video does."""
        count, shift = 0, 0.0
        with closing(source):
            for frame in source:
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
        what was seen: a frame time after it, or as they are."""
        last = self._stream.last_pts
        return 0.0 if last is None or first > last else self._stream.next_pts - first

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
        with self._alone():
            ids = question_tokens(self._model, question, self._stream.talking, special_tokens)
            around = template_tokens(self._model, ids, self._stream.talking)
        result: list[Reply] = []
        self.check_room(len(ids))
        sampling = SamplingParams.from_model(self._spec) if sampling is None else sampling
        pieces = self._answer(ids, around, since, dialogue, sampling, stream, result)
        if stream:
            return ReplyStream(pieces, lambda: result[0] if result else None)
        for _ in pieces:
            pass
        return result[0]

    def check_room(self, tokens: int) -> None:
        """MemoryCapError where a question of so many tokens, with its template, leaves no room to answer."""
        if tokens >= self._branch_tokens:
            raise _core.MemoryCapError(
                f"question: {tokens} tokens with its template leave no room for an answer in "
                f"branch_tokens={self._branch_tokens}; raise it, or ask in fewer words"
            )

    def memory(self) -> dict[str, Any]:
        """Bytes by tier and part, where every token is; what was split, merged, collapsed, dropped, lost."""
        with self._alone():
            stats: dict[str, Any] = self._open().stats()
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
        with self._my_turn(), replaced(path) as descriptor:
            self._save(descriptor, note)

    def fork(self, policy: Any = None) -> Session:
        """Another session with the same content and settings, and a cap of its own; the two go on apart.
        It is saved into a pipe and restored from it: no third copy is made. policy: where it is an object,
        another one of its class. ValueError as save; MemoryCapError or DeviceError where there is no room."""
        config = replace(self.config, trace=None, policy=self.config.policy if policy is None else policy)
        with self._my_turn():
            return piped(self._save, lambda saved: Session(self._model, config, saved))

    def _save(self, descriptor: int, note: Any = None) -> None:
        with self._alone():
            self._settle()
            writer = begin(descriptor, self._model, self.config, self._stream.document(), note)
            self._memory.save(writer)
            self._stream.save_pictures(writer)
            writer.finish()

    def check_invariants(self) -> None:
        """Recount everything; raises InvariantError on a defect. Slow."""
        with self._alone():
            self._open().check_invariants()

    def close(self) -> None:
        """Give the memory back, once the frame or the token that another thread is at is through; an answer
        that goes on after it raises ValueError, as every call from now on. Closing twice is fine, and so is
        closing what a fork of the process has of it, which its own process does not notice."""
        self._is_closed = True  # before the lock: who holds it lets it go and takes it again
        if not self._is_in_its_process():
            self._memory = self._attend = None
            return
        with self._lock:
            self._memory = self._attend = None  # its copy thread ends here, with its last span
            self._trace.close()

    def hold(self, seconds: float) -> None:
        """For the end of the interpreter: wait until no thread is in a step of this session, `seconds` at
        most, and let none but the caller's begin another."""
        if self._is_in_its_process():
            self._lock.acquire(timeout=seconds)

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _is_in_its_process(self) -> bool:
        return self._process == os.getpid()

    def _need_its_process(self) -> None:
        if not self._is_in_its_process():
            raise ValueError(
                f"the session belongs to process {self._process}, of which this one is a fork: open one in "
                "each process, or start processes by spawn or forkserver"
            )

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One call into the core, or the model, at a time."""
        self._need_its_process()  # in a fork, whoever held the lock is not there
        with self._lock:
            yield

    @contextmanager
    def _my_turn(self) -> Iterator[None]:
        """Wait for frames and answers of other threads; a streamed answer is not waited for."""
        self._need_its_process()
        if self._streaming:
            raise ValueError("an answer is being streamed: iterate it to its end or close() it first")
        if self._turn_of == threading.get_ident():
            raise ValueError("a policy cannot append to or ask the session that is calling it")
        with self._turn, self._named():  # not acquire(): an interrupt behind it would keep the turn for ever
            yield

    @contextmanager
    def _named(self) -> Iterator[None]:
        self._turn_of = threading.get_ident()
        try:
            yield
        finally:
            self._turn_of = None

    def _settle(self) -> None:
        """What an interrupt left open, between two steps of a frame or an answer, is forgotten."""
        memory = self._open()
        memory.abort()
        if memory.asking:
            memory.close_question(False)

    def _open(self) -> Any:
        if self._is_closed:
            raise ValueError("the session is closed")
        return self._memory

    @contextmanager
    def _block_or_nothing(self) -> Iterator[Any]:
        """The memory; a block that the body begins is forgotten if anything fails before its end."""
        memory = self._open()
        try:
            yield memory
        except BaseException:
            memory.abort()
            raise

    def _forward(self, embeds: FloatArray, want_logits: bool) -> NDArray[np.float32] | None:
        """One forward pass of a block that was begun."""
        assert self._attend is not None  # the memory is open: a block was begun
        with self._trace.span("forward"):
            return self._model.forward(embeds, self._attend, want_logits)

    def _block(
        self, embeds: FloatArray, want_logits: bool, lead: int = 0, trail: int = 0
    ) -> NDArray[np.float32] | None:
        """A block of text, of a question the first `lead` and last `trail` tokens its template's."""
        with self._block_or_nothing() as memory:
            memory.begin_text(len(embeds), lead, trail)
            logits = self._forward(embeds, want_logits)
            memory.commit()
            return logits

    def _answer(
        self,
        ids: list[int],
        around: tuple[int, int],
        since: float | None,
        dialogue: bool,
        sampling: SamplingParams,
        stream: bool,
        result: list[Reply],
    ) -> Iterator[str]:
        began = time.perf_counter()
        sampler = Sampler(sampling, self._prefix + ids)
        answer: list[int] = []
        text = AnswerText(self._spec.thinking)
        with self._my_turn():
            self._streaming = stream
            keep = False  # a turn that failed is not part of the dialogue; one that was stopped early is
            try:
                with self._alone():
                    self._settle()
                    self._end_pair()
                    self._open().open_question(None if since is None else since - self._stream.origin)
                    first_logits = logits = self._block(self._model.embed_text(ids), True, *around)
                    first_token = time.perf_counter() - began
                    moments = [
                        (first + self._stream.origin, last + self._stream.origin, mass)
                        for first, last, mass in self._open().evidence()
                    ]
                    lost = self._memory.evidence_lost
                    self._check_context(len(ids))
                assert logits is not None and first_logits is not None
                limit = min(sampling.max_tokens, self._branch_tokens - len(ids))
                finish: Literal["end", "length"] = "length"
                while len(answer) < limit:
                    if self.ending:
                        raise ValueError("the session ends: the answer was stopped")
                    token = sampler.next(logits)
                    if token in self._spec.eos_token_ids:
                        finish = "end"
                        break
                    answer.append(token)
                    with self._alone():
                        said = self._model.detokenize(answer)
                    if (piece := text.piece(said)) is not None:
                        yield piece
                    if len(answer) < limit or dialogue:
                        with self._alone():
                            next_logits = self._block(self._model.embed_text([token]), True)
                        assert next_logits is not None
                        logits = next_logits
                if rest := text.rest():
                    yield rest
                keep = dialogue
            except GeneratorExit:
                keep = dialogue
                raise
            finally:
                self._streaming = False
                self._end_question(keep)
        gap = median(self._stream.gaps)
        span = gap * (
            self._spec.temporal_patch_size - 1
        )  # a picture's last frame comes so long after its first
        moments = [(start, end + span, mass) for start, end, mass in moments]
        evidence = time_ranges(moments, gap=1.5 * gap)
        times = first_token, time.perf_counter() - began
        about = len(answer), finish, *times, first_logits, tuple(moments), lost
        result.append(Reply(text.text, evidence, *about, thinking=text.thought))

    def _check_context(self, asked: int) -> None:
        """Warn, once, when a question reads more than the model has positions for."""
        context = self._spec.context
        if not context or self._stream.past_context or self._stream.seen + asked <= context:
            return
        read = int(self._memory.stats()["read"]["questions"]) + asked
        if read > context:
            self._stream.past_context = True
            warnings.warn(
                f"{self._spec.name}: a question reads {read} tokens, but the model was trained on {context} "
                "positions; answers get worse past them. Lower memory= or tokens_per_frame=, or use a policy "
                "that reads a part (retrieve_tokens=)",
                stacklevel=3,
            )

    def _end_question(self, keep: bool) -> None:
        """Nothing of a question stays open, not even when keeping it fails."""
        if not self._is_in_its_process():
            return
        with self._lock:
            if self._memory is None or not self._memory.asking:
                return
            try:
                self._memory.close_question(keep)
            except BaseException:
                if self._memory.asking:
                    self._memory.close_question(False)
                raise
            self._stream.talking |= keep


def _picture_of(encoded: EncodedFrame) -> FloatArray:
    """The tokens of the picture, without the text around it."""
    return encoded.tokens[encoded.lead : len(encoded.tokens) - encoded.trail]
