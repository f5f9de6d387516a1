"""Builders of tiny random transformers models."""

from __future__ import annotations

from typing import Any

import pytest
import torch

transformers = pytest.importorskip(
    "transformers", reason="these tests reduce its models: pip install 'laser-kernels[hf]'"
)

LLAMA = {
    **{"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 3},
    **{"num_key_value_heads": 1, "vocab_size": 50, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2},
}
GPT2 = {
    **{"n_embd": 24, "n_layer": 2, "n_head": 2, "n_positions": 64, "vocab_size": 50},
    **{"bos_token_id": 1, "eos_token_id": 2},
}
MIXTRAL = {**LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2}


def llama(dtype: torch.dtype = torch.float32, **more: Any) -> Any:
    return _model(transformers.LlamaForCausalLM, transformers.LlamaConfig(**{**LLAMA, **more}), dtype)


def gpt2(dtype: torch.dtype = torch.float32, **more: Any) -> Any:
    return _model(transformers.GPT2LMHeadModel, transformers.GPT2Config(**{**GPT2, **more}), dtype)


def mixtral(dtype: torch.dtype = torch.float32, **more: Any) -> Any:
    return _model(transformers.MixtralForCausalLM, transformers.MixtralConfig(**{**MIXTRAL, **more}), dtype)


def _model(kind: Any, config: Any, dtype: torch.dtype) -> Any:
    torch.manual_seed(0)
    return kind(config).to(dtype).eval()


def tokens(count: int = 8) -> torch.Tensor:
    return torch.randint(3, 50, (2, count), generator=torch.Generator().manual_seed(1))


def state(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def changed(model: Any, before: dict[str, torch.Tensor]) -> set[str]:
    """Names whose bits are not those of `before`."""
    now = model.state_dict()
    assert now.keys() == before.keys()
    return {name for name, tensor in now.items() if not torch.equal(tensor, before[name])}
