"""Checkpoints with their whole processors, small and random."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers as tf

from fixtures_hf import EOS, HIDDEN, ID, TEXT, VOCAB, rope, tokenizer

TEMPLATE = (
    "{% for m in messages %}USER: {% for c in m['content'] %}{% if c['type'] == 'image' %}<image>\n"
    + "{% else %}{{ c['text'] }}{% endif %}{% endfor %} {% endfor %}"
    + "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def write_llava(folder: Path) -> Path:
    """LLaVA 1.5: 16 tokens a frame, byte tokens. Its AutoProcessor needs no torchvision."""
    config = tf.LlavaConfig(
        vision_config=CLIP, text_config=TEXT | dict(model_type="llama") | rope(1e4),
        image_token_index=ID["<image>"], tie_word_embeddings=False,
    )  # fmt: skip
    made = tf.LlavaProcessor(
        clip_images(), tokenizer(TEMPLATE), patch_size=14, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=TEMPLATE,
    )  # fmt: skip
    return saved(tf.LlavaForConditionalGeneration(config), made, folder)


def write_ovis2(folder: Path) -> Path:
    """Ovis 2: 16 tokens a frame between tags that its tower has embeddings for. No torchvision either."""
    words = tokenizer()
    tags = ["<IMG_ATOM>", "<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>"]
    words.add_special_tokens({"additional_special_tokens": tags})
    atom, *indicators = words.convert_tokens_to_ids(tags)
    vision = dict(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=56,
        patch_size=14, vocab_size=40,
    )  # fmt: skip
    text = TEXT | dict(model_type="qwen2", vocab_size=VOCAB + 8) | rope()
    config = tf.Ovis2Config(
        vision_config=vision, text_config=text, image_token_id=atom, visual_indicator_token_ids=indicators,
        vocab_size=VOCAB + 8, hidden_size=HIDDEN, tie_word_embeddings=False,
    )  # fmt: skip
    template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}"
        + "{% if c['type'] == 'image' %}<image>\n{% else %}{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
        + "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    images = tf.Ovis2ImageProcessor(size={"height": 56, "width": 56})
    made = tf.Ovis2Processor(images, words, chat_template=template, image_seq_length=16)
    return saved(tf.Ovis2ForConditionalGeneration(config), made, folder)


def write_llava_next_video(folder: Path) -> Path:
    """LLaVA-NeXT-Video: 64 patches pooled to 16 tokens a frame. AutoProcessor needs torchvision: files are
    written without it."""
    config = tf.LlavaNextVideoConfig(
        vision_config=CLIP | dict(image_size=112), text_config=TEXT | dict(model_type="llama") | rope(1e4),
        image_token_index=ID["<image>"], video_token_index=ID["<video>"], tie_word_embeddings=False,
    )  # fmt: skip
    template = TEMPLATE.replace("'image'", "'video'").replace("<image>", "<video>")
    size = {"size": {"shortest_edge": 112}, "crop_size": {"height": 112, "width": 112}}
    images = tf.LlavaNextImageProcessor(image_grid_pinpoints=[[112, 112]], **size)
    saved(tf.LlavaNextVideoForConditionalGeneration(config), tokenizer(template), folder)
    images.save_pretrained(folder)
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    video = {"video_processor_type": "LlavaNextVideoVideoProcessor", "do_center_crop": True, **size}
    keep = (
        "image_mean",
        "image_std",
        "do_normalize",
        "do_rescale",
        "do_resize",
        "resample",
        "rescale_factor",
    )
    video |= {name: settings[name] for name in keep}
    (folder / "video_preprocessor_config.json").write_text(json.dumps(video))
    whole = dict(
        processor_class="LlavaNextVideoProcessor", patch_size=14, vision_feature_select_strategy="default",
        video_token="<video>", image_token="<image>", num_additional_image_tokens=1,
    )  # fmt: skip
    (folder / "processor_config.json").write_text(json.dumps(whole))
    return folder


CLIP: dict[str, Any] = dict(
    model_type="clip_vision_model", hidden_size=32, intermediate_size=48, num_hidden_layers=2,
    num_attention_heads=2, image_size=56, patch_size=14, projection_dim=HIDDEN,
)  # fmt: skip


def clip_images() -> Any:
    """A crop of 56 x 56."""
    return tf.CLIPImageProcessor(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})


def saved(model: Any, processor: Any, folder: Path) -> Path:
    """A directory as save_pretrained writes it; weights so large that tokens differ, an end that never
    wins."""
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0, 1.2 / parameter[0].numel() ** 0.5)
        model.get_input_embeddings().weight.normal_(0, 1)
        model.lm_head.weight[EOS] = 0
    model.generation_config.eos_token_id = EOS
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
