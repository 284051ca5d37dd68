"""The text that every family writes around a video and around its frames, by the model_type of config.json.
Published formats, for both layouts; what a family does with pixels stands with its layout."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from mosaic_edge.models.newline import NEWLINE
from mosaic_edge.models.prompt import IMAGE, Prompt


def _nothing(pts: float, number: int) -> str:
    return ""


@dataclass(frozen=True)
class VideoText:
    """A conversation about a video, in the words of one family."""

    prompt: Prompt
    """The published one, for checkpoints without a chat template."""
    mark: str = "<video>"
    """What a chat template writes where the video goes; "": it knows of no video, and the processor has
    `prompt` in its place."""
    lead: Callable[[float, int], str] = _nothing
    """Text before picture number n at so many seconds."""
    trail: str = ""
    """Text behind each picture."""

    def parted(self, between: str) -> VideoText:
        """With text between two pictures."""
        lead = self.lead
        return replace(self, lead=lambda pts, number: (between if number else "") + lead(pts, number))


def _numbered(pts: float, number: int) -> str:
    """InternVL: frames are separated by a line break."""
    return f"{'' if number == 0 else chr(10)}Frame{number + 1}: <img>"


def _minutes(pts: float, number: int) -> str:
    """SmolVLM 2: the intro ends with a line break of its own, which belongs to the first frame's text."""
    start = "\n" if number == 0 else ""
    return (
        f"{start}\nFrame from {int(pts // 60):02d}:{int(pts % 60):02d}:<fake_token_around_image><global-img>"
    )


def _started(pts: float, number: int) -> str:
    """Ovis 2: a picture that is one tile."""
    return "<IMG_START>"


def _tagged(pts: float, number: int) -> str:
    """Idefics 3: a picture between tags."""
    return "<fake_token_around_image><global-img>"


def _seconds(pts: float, number: int) -> str:
    """Qwen3-VL: the middle of the frames that make a picture, with one decimal."""
    return f"<{pts:.1f} seconds><|vision_start|>"


def _timed(pts: float, number: int) -> str:
    """VideoLLaMA 3: a comma between frames."""
    return f"{',' if number else ''}Time {pts:.1f}s:"


_CHATML_NEXT = "<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
_SMOL_NEXT = "<end_of_utterance>\nUser: {question}<end_of_utterance>\nAssistant:"
_IDEFICS = Prompt("<|im_start|>User:", "{question}<end_of_utterance>\nAssistant:", _SMOL_NEXT)
_QWEN2 = VideoText(
    Prompt(
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>",
        "<|vision_end|>{question}<|im_end|>\n<|im_start|>assistant\n",
        _CHATML_NEXT,
    ),
    mark="<|video_pad|>",
)
_QWEN3 = VideoText(
    Prompt("<|im_start|>user\n", "{question}<|im_end|>\n<|im_start|>assistant\n", _CHATML_NEXT),
    mark="<|vision_start|><|video_pad|><|vision_end|>",
    lead=_seconds,
    trail="<|vision_end|>",
)
_ONEVISION = Prompt(
    "<|im_start|>user ",
    "\n{question}<|im_end|><|im_start|>assistant\n",
    "<|im_end|><|im_start|>user \n{question}<|im_end|><|im_start|>assistant\n",
).behind_video(NEWLINE)
_LLAMA3_NEXT = (
    "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n{question}<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)
_PERCEPTION = Prompt(
    "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nYou are a helpful language and vision "
    "assistant. You are able to understand the visual content that the user provides, and assist the user "
    "with a variety of tasks using natural language.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n",
    "{question}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    _LLAMA3_NEXT,
)
# The published intro counts the frames and the length of the video, which a stream does not know: left
# without numbers.
_SMOLVLM2 = (
    replace(_IDEFICS, prefix="<|im_start|>User: ")
    .before_video("You are provided the following series of frames from a video.")
    .behind_video("\n\n")
)

VIDEO_TEXTS: Mapping[str, VideoText] = {
    "llava": VideoText(
        Prompt("USER: ", "\n{question} ASSISTANT:", "</s>USER: {question} ASSISTANT:", between="\n"),
        mark=IMAGE,
    ),
    "llava_next_video": VideoText(
        Prompt("USER: ", "\n{question} ASSISTANT:", "</s>USER: {question} ASSISTANT:")
    ),
    "llava_onevision": VideoText(_ONEVISION),
    "smolvlm": VideoText(_SMOLVLM2, mark="", lead=_minutes, trail="<fake_token_around_image>"),
    "idefics3": VideoText(_IDEFICS, mark=IMAGE, lead=_tagged, trail="<fake_token_around_image>"),
    "internvl": VideoText(
        Prompt("<|im_start|>user\n", "\n{question}<|im_end|>\n<|im_start|>assistant\n", _CHATML_NEXT),
        lead=_numbered,
        trail="</img>",
    ),
    "ovis2": VideoText(
        Prompt(
            "<|im_start|>user\n",
            "\n{question}<|im_end|>\n<|im_start|>assistant\n",
            _CHATML_NEXT,
            between="\n",
        ),
        mark=IMAGE,
        lead=_started,
        trail="<IMG_GRID><IMG_END>",
    ),
    "perception_lm": VideoText(_PERCEPTION, mark="<|video|>"),
    "qwen2_vl": _QWEN2,
    "qwen2_5_vl": _QWEN2,
    "qwen3_vl": _QWEN3,
    "qwen3_vl_moe": _QWEN3,
    "video_llama_3": VideoText(
        Prompt("<|im_start|>user\n", "{question}<|im_end|>\n<|im_start|>assistant\n", _CHATML_NEXT),
        mark="<|video_pad|>",
        lead=_timed,
    ),
}
