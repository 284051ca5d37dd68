"""Decoders of a few thousand random weights, as transformers directories and as GGUF files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
FAMILIES = ("llama", "qwen2")


def small_config(family: str, vocab: int) -> Any:
    """Odd shapes: 3 layers, 6 query heads on 2 KV heads of 8 channels, fewer than hidden / heads (llama)."""
    from transformers import LlamaConfig, Qwen2Config

    same: dict[str, Any] = dict(
        vocab_size=vocab, intermediate_size=56, num_hidden_layers=3, num_key_value_heads=2,
        num_attention_heads=6, max_position_embeddings=4096, rms_norm_eps=2**-17,
        eos_token_id=1, bos_token_id=1,
    )  # fmt: skip
    if family == "llama":
        return LlamaConfig(hidden_size=60, head_dim=8, tie_word_embeddings=True, rope_theta=5000.0, **same)
    return Qwen2Config(hidden_size=48, tie_word_embeddings=False, rope_theta=20000.0, **same)


def small_model(family: str, vocab: int) -> Any:
    """Random weights, large enough that attention chooses and biases matter."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(small_config(family, vocab)).float().eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("bias"):
                weight.normal_(0, 3)
            elif "norm" in name:
                weight.uniform_(0.5, 1.5)
            else:
                weight.normal_(0, 0.3)
    return model


def write_small(family: str, folder: Path, texts: list[str], template: str | None = None) -> Path:
    """A transformers directory whose tokenizer knows the words of `texts`."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    split = pre_tokenizers.Whitespace()
    words = sorted({word for text in texts for word, _ in split.pre_tokenize_str(text)})
    vocabulary = {word: i for i, word in enumerate(["<unk>", "<eos>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = split
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<eos>")
    fast.chat_template = template
    fast.save_pretrained(folder)
    small_model(family, len(vocabulary)).save_pretrained(folder)
    return folder


def write_small_gguf(family: str, file: Path) -> Any:
    """The model of `small_model` as llama.cpp's converter writes it, float32; returns the model."""
    import gguf
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    tokens = ["<eos>", *bytes_to_unicode().values(), "in", "th"]
    model = small_model(family, len(tokens))
    c = model.config
    writer = gguf.GGUFWriter(file, family)
    writer.add_vocab_size(c.vocab_size)
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_key_length(8)
    writer.add_value_length(8)
    writer.add_rope_dimension_count(8)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    writer.add_rope_freq_base(c.rope_parameters["rope_theta"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, *[1] * (len(tokens) - 1)])
    writer.add_token_merges(["i n", "t h"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    names = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
        "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
        "model.layers.": "blk.",
    }  # fmt: skip
    for name, weight in model.named_parameters():
        value = weight.detach().numpy()
        if family == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = c.num_attention_heads if "q_proj" in name else c.num_key_value_heads
            value = value.reshape(heads, 2, 4, -1).swapaxes(1, 2).reshape(value.shape)
        for long, short in names.items():
            name = name.replace(long, short)
        writer.add_tensor(name, value.copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model
