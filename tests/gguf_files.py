"""Writes small language models as GGUF files, as llama.cpp's converter does."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import torch
from chat_models import TEMPLATE
from transformers import AutoModelForCausalLM

NORMAL, CONTROL = gguf.TokenType.NORMAL, gguf.TokenType.CONTROL
KINDS = {"llama": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2}


def write_gguf(folder: Path, file: Path, *, template: str | None = TEMPLATE, output: bool = False) -> Path:
    """A model folder of the kind llama or qwen2 as a GGUF file, with float32 weights.

    Args:
        output: whether the output embeddings are written although they are those of the input; those of the input
            are then written with errors, as if quantised the more.
    """
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config, kind, width = model.config, model.config.model_type, model.model.layers[0].self_attn.head_dim
    writer = gguf.GGUFWriter(file, kind)
    writer.add_name(file.stem)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    tokens = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].__getitem__)
    special = {token["content"] for token in tokenizer["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(kind if kind == "qwen2" else "default")
    writer.add_token_list(tokens)
    writer.add_token_types([CONTROL if token in special else NORMAL for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(config.bos_token_id)
    writer.add_eos_token_id(config.eos_token_id)
    if template is not None:
        writer.add_chat_template(template)
    names = gguf.get_tensor_name_map(KINDS[kind], config.num_hidden_layers)
    tensors = {key: value for key, value in model.state_dict().items() if key != "lm_head.weight"}
    if output or not config.tie_word_embeddings:
        tensors["lm_head.weight"] = model.lm_head.weight
    if output:
        tensors["model.embed_tokens.weight"] = model.lm_head.weight + 0.1
    for key, value in tensors.items():
        name = names.get_name(key, try_suffixes=(".weight", ".bias"))
        if kind == "llama" and key.endswith(("q_proj.weight", "k_proj.weight")):
            value = value.view(-1, 2, width // 2, config.hidden_size).transpose(1, 2).reshape(value.shape)
        writer.add_tensor(name, value.detach().numpy().copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file
