"""Small language models with weights whose spectra look like those of trained ones."""

import torch
import transformers

from laser_kernels import testing


def tiny_llama(seed=0):
    """Two layers, hidden size 96, vocabulary 64; every projection is llm_like."""
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=96,
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    )
    torch.manual_seed(seed)
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for i, (name, weight) in enumerate(model.named_parameters()):
            if "proj" in name:
                weight.copy_(testing.llm_like(*weight.shape, seed=seed + i) / 3)
    return model
