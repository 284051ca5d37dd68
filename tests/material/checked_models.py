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


def write_llava(folder: Path, **text: Any) -> Path:
    """LLaVA 1.5: 16 tokens a frame, byte tokens. Its AutoProcessor needs no torchvision. text: of its
    decoder, what is to be other than TEXT."""
    config = tf.LlavaConfig(
        vision_config=CLIP, text_config=TEXT | dict(model_type="llama") | rope(1e4) | text,
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


def write_video_llama3(folder: Path) -> Path:
    """VideoLLaMA 3: patches of 14, four of them a token, at any aspect. AutoProcessor needs torchvision."""
    vision = dict(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, patch_size=14,
    )  # fmt: skip
    config = tf.VideoLlama3Config(
        vision_config=vision, text_config=TEXT | dict(model_type="qwen2") | rope(),
        image_token_id=ID["<|image_pad|>"], video_token_id=ID["<|video_pad|>"],
    )  # fmt: skip
    template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}"
        + "{% if c['type'] == 'video' %}<|video_pad|>\n{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
        + "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    saved(tf.VideoLlama3ForConditionalGeneration(config), tokenizer(template), folder)
    size = {"shortest_edge": 16 * 28 * 28, "longest_edge": 16384 * 28 * 28}
    rules = HALVES | dict(size=size, resample=3, patch_size=14, temporal_patch_size=1)
    settings = {
        "preprocessor_config": rules | dict(image_processor_type="VideoLlama3ImageProcessor", merge_size=1),
        "video_preprocessor_config": rules
        | dict(video_processor_type="VideoLlama3VideoProcessor", merge_size=2, use_token_compression=True),
        "processor_config": dict(processor_class="VideoLlama3Processor"),
    }
    return with_settings(folder, settings)


def write_perception_lm(folder: Path) -> Path:
    """PerceptionLM: 64 patches of timm's tower pooled to 16 tokens a frame, under scaled rotary positions.
    timm and torchvision are needed by the library."""
    words = tokenizer()
    own = [
        "<|begin_of_text|>", "<|image|>", "<|video|>", "<|start_header_id|>", "<|end_header_id|>",
        "<|eot_id|>",
    ]  # fmt: skip
    words.add_special_tokens({"additional_special_tokens": own, "bos_token": own[0]})
    ids = dict(zip(own, words.convert_tokens_to_ids(own), strict=True))
    tower = dict(
        model_type="timm_wrapper", architecture="vit_pe_core_tiny_patch16_384", do_pooling=False,
        num_labels=0, initializer_range=0.02,
        model_args=dict(
            embed_dim=32, depth=2, num_heads=2, img_size=[112, 112], patch_size=14, global_pool="",
            ref_feat_shape=[8, 8], use_post_transformer_norm=False, init_values=0.1, class_token=True,
        ),
    )  # fmt: skip
    scaled = rope(5e5, rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)
    scaled["rope_scaling"]["original_max_position_embeddings"] = 1024
    config = tf.PerceptionLMConfig(
        vision_config=tower, text_config=TEXT | dict(model_type="llama", vocab_size=VOCAB + 8) | scaled,
        image_token_id=ids["<|image|>"], video_token_id=ids["<|video|>"], projector_pooling_ratio=2,
        vision_use_cls_token=True, tie_word_embeddings=False,
    )  # fmt: skip
    words.chat_template = (
        "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
        + "{% for c in m['content'] %}{% if c['type'] == 'video' %}<|video|>{% else %}{{ c['text'] | trim }}"
        + "{% endif %}{% endfor %}<|eot_id|>{% endfor %}"
        + "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
    )
    saved(tf.PerceptionLMForConditionalGeneration(config), words, folder)
    said = json.loads((folder / "tokenizer_config.json").read_text())
    said["extra_special_tokens"] = {"image_token": "<|image|>", "video_token": "<|video|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
    size = {"height": 112, "width": 112}
    rules = HALVES | dict(size=size, resample=3)
    tiles = dict(tile_size=112, max_num_tiles=36, vision_input_type="thumb+tile")
    settings = {
        "preprocessor_config": rules | tiles | dict(image_processor_type="PerceptionLMImageProcessorFast"),
        "video_preprocessor_config": rules | dict(video_processor_type="PerceptionLMVideoProcessor"),
        "processor_config": dict(processor_class="PerceptionLMProcessor", patch_size=14, pooling_ratio=2),
    }
    return with_settings(folder, settings)


HALVES: dict[str, Any] = dict(
    do_resize=True, do_rescale=True, do_normalize=True, do_convert_rgb=True, rescale_factor=1 / 255,
    image_mean=[0.5, 0.5, 0.5], image_std=[0.5, 0.5, 0.5],
)  # fmt: skip


def with_settings(folder: Path, settings: dict[str, dict[str, Any]]) -> Path:
    """Files of processors that need torchvision to be made."""
    for name, said in settings.items():
        (folder / f"{name}.json").write_text(json.dumps(said))
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
