"""A LLaVA checkpoint with its whole processor, small and random: it needs no torchvision."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers as tf

from fixtures_hf import EOS, HIDDEN, ID, TEXT, rope, tokenizer

TEMPLATE = (
    "{% for m in messages %}USER: {% for c in m['content'] %}{% if c['type'] == 'image' %}<image>\n"
    + "{% else %}{{ c['text'] }}{% endif %}{% endfor %} {% endfor %}"
    + "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def write_llava(folder: Path) -> Path:
    """A directory as save_pretrained writes it: 16 tokens a frame, byte tokens."""
    vision = dict(
        model_type="clip_vision_model", hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=2, image_size=56, patch_size=14, projection_dim=HIDDEN,
    )  # fmt: skip
    config = tf.LlavaConfig(
        vision_config=vision, text_config=TEXT | dict(model_type="llama") | rope(1e4),
        image_token_index=ID["<image>"], tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(7)
    model = tf.LlavaForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0, 1.2 / parameter[0].numel() ** 0.5)
        model.get_input_embeddings().weight.normal_(0, 1)
        model.lm_head.weight[EOS] = 0
    model.generation_config.eos_token_id = EOS
    model.save_pretrained(folder)
    images = tf.CLIPImageProcessor(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})
    made = tf.LlavaProcessor(
        images, tokenizer(TEMPLATE), patch_size=14, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=TEMPLATE,
    )  # fmt: skip
    made.save_pretrained(folder)
    return folder
