"""The body of a chat completion: OpenAI's fields, and ours beside them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mosaic_edge.serve.api import Drawn

MOST_PARTS = 256
_NOT_DONE: dict[str, tuple[Any, ...]] = {
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "modalities": (["text"],),
    "audio": (),
    "web_search_options": (),
}
"""Fields of OpenAI's that would change an answer, and the values with which they do not."""


class Url(BaseModel):
    """Where a picture or a video is."""

    url: str


class Text(BaseModel):
    """A part of text."""

    type: Literal["text"]
    text: str


class Picture(BaseModel):
    """A part that is a picture."""

    type: Literal["image_url"]
    image_url: Url


class Video(BaseModel):
    """A part that is a video, as vLLM has it."""

    type: Literal["video_url"]
    video_url: Url


Part = Annotated[Text | Picture | Video, Field(discriminator="type")]


class Message(BaseModel):
    """A message of the conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part] | None = None
    """None: an assistant said nothing."""

    @property
    def parts(self) -> list[Text | Picture | Video]:
        """Its content as parts."""
        if isinstance(self.content, str):
            return [Text(type="text", text=self.content)]
        return self.content or []

    @property
    def text(self) -> str:
        """Its text alone."""
        return "\n".join(part.text for part in self.parts if isinstance(part, Text))


class StreamOptions(BaseModel):
    """Of a streamed answer."""

    include_usage: bool = False


class Chat(Drawn):
    """The body of POST /v1/chat/completions. Fields that change nothing here are let through; those that
    would change an answer, and cannot, are refused by name."""

    model_config = ConfigDict(extra="allow")

    model: str
    messages: list[Message] = Field(min_length=1, max_length=MOST_PARTS)
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_completion_tokens: int | None = None
    n: Literal[1] | None = None
    session: str | None = None
    since: float | None = None
    memory: int | str | None = None
    fps: float | None = None

    @model_validator(mode="after")
    def _asks_for_nothing_else(self) -> Chat:
        for name, harmless in _NOT_DONE.items():
            value = (self.model_extra or {}).get(name)
            if value is not None and value not in harmless:
                raise ValueError(f"{name}: answers are plain text as the model says it; leave it out")
        return self

    @property
    def media(self) -> list[Picture | Video]:
        """Pictures and videos, in their order."""
        found = [p for message in self.messages for p in message.parts if not isinstance(p, Text)]
        if len(found) > MOST_PARTS:
            raise ValueError(f"messages: {len(found)} pictures and videos; expected at most {MOST_PARTS}")
        return found

    @property
    def question(self) -> str:
        """The text of the messages. Plain text to the model: no role ends a turn or begins one."""
        if self.messages[-1].role != "user":
            raise ValueError(f"messages: the last is of {self.messages[-1].role!r}; expected 'user'")
        *before, last = self.messages
        if not before:
            return last.text
        lines = [m.text if m.role in ("system", "developer") else f"{m.role}: {m.text}" for m in before]
        return "\n".join([*lines, last.text])
