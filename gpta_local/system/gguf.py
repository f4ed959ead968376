"""A GGUF file made into a model folder: bfloat16 safetensors, tokenizer, chat template.

Knows transformers and the format. Does not know where files come from, nor where folders lie.
"""

from __future__ import annotations

import io
import mmap
import tempfile
from contextlib import redirect_stderr
from pathlib import Path

from gpta_local.errors import ModelError, first_line
from gpta_local.system.models import load_config, load_pretrained, load_tokenizer

GGUF = "model.gguf"
KINDS = ("llama", "qwen2")
"""Architectures whose conversion is tested here."""
ROPE_FACTORS = b"rope_freqs.weight"
"""The tensor by which Llama 3.1 and later stretch their positions; transformers leaves it out."""


def convert(file: Path, folder: Path, *, tied: bool) -> None:
    """Dequantise a GGUF file once, and save what transformers and vLLM load into `folder`.

    Args:
        folder: an empty one.
        tied: whether input and output embeddings are one tensor upstream. Where the file has two, the output's
            is kept, which is quantised the less.

    Raises:
        ModelError: it is no GGUF file, of another kind, has no chat template, or lacks weights.
        OSError, SafetensorError: `folder` cannot be written.
    """
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    where = str(file)
    with file.open("rb") as content:
        if content.read(4) != b"GGUF":
            raise ModelError("not a GGUF file", where=where)
        with mmap.mmap(content.fileno(), 0, access=mmap.ACCESS_READ) as view:
            stretched = view.find(ROPE_FACTORS) >= 0
    fix = "Serve it with a program that reads it, or give its folder of safetensors weights"
    if stretched:
        raise ModelError("has factors for its positions, which are not carried over", where=where, fix=fix)
    with tempfile.TemporaryDirectory(prefix="gguf-") as alone:  # transformers reads whatever else lies beside a file
        (Path(alone) / GGUF).symlink_to(file.resolve())
        try:
            config = load_config(Path(alone), gguf_file=GGUF)
            if config.model_type not in KINDS:
                what = f"of the kind {config.model_type}; {' and '.join(KINDS)} can be read"
                raise ModelError(what, where=where, fix=fix)
            tokenizer = load_tokenizer(Path(alone), gguf_file=GGUF)
            if not tokenizer.chat_template:
                raise ModelError("has no chat template", where=where, fix="Use an instruction-tuned model")
            with redirect_stderr(io.StringIO()):  # its progress bar cannot be turned off
                model, report = load_pretrained(
                    AutoModelForCausalLM,
                    Path(alone),
                    gguf_file=GGUF,
                    config=config,
                    dtype=torch.bfloat16,
                    quantization_config=GgufConfig(dequantize=True),
                    output_loading_info=True,
                )
        except ModelError:
            raise
        except Exception as exc:  # a broken file raises ValueError, KeyError, OSError, IndexError …
            raise ModelError(f"cannot be read as a model: {first_line(exc)}", where=where) from exc
    if missing := report["missing_keys"]:
        raise ModelError(f"lacks weights, as {min(missing)}", where=where)
    if tied and not model.config.tie_word_embeddings:
        model.get_input_embeddings().weight = model.get_output_embeddings().weight
        model.config.tie_word_embeddings = True
        model.tie_weights()
    ends = {tokenizer.eos_token_id, tokenizer.pad_token_id} - {None}
    model.generation_config.eos_token_id = sorted(ends)
    model.generation_config.do_sample = True  # or `transformers serve` would give the same reply to every seed
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
