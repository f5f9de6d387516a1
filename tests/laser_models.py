"""Tiny language models and a tokenizer of words: what the tests of laser_kernels.laser search."""

import pytest
import torch

WORDS = [f"w{i}" for i in range(96)]


class Words:
    """A tokenizer: one token per word, none before or after."""

    def __call__(self, text):
        return {"input_ids": [WORDS.index(word) for word in text.split()]}


def _config(kind, **more):
    transformers = pytest.importorskip("transformers", reason="the searched models are transformers'")
    sizes = {
        "llama": dict(
            hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2
        ),
        "gpt2": dict(n_embd=32, n_layer=4, n_head=4),
        "gpt_neox": dict(hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4),
        "opt": dict(hidden_size=32, ffn_dim=64, num_hidden_layers=4, num_attention_heads=4, word_embed_proj_dim=32),
    }
    plain = dict(vocab_size=len(WORDS), bos_token_id=0, eos_token_id=0, pad_token_id=0)
    return transformers.AutoConfig.for_model(kind, **{**plain, **sizes[kind], **more})


def tiny(kind="llama", seed=0, scale=8.0, **more):
    """A random model in eval mode; `scale` on its matrices, so that every layer matters to what it says."""
    config = _config(kind, **more)
    import transformers

    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2 and "emb" not in name and "wte" not in name and "wpe" not in name:
                weight.mul_(scale)
    return model


def prompts(count, seed=0, length=5):
    """Texts of `length` or one more words."""
    g = torch.Generator().manual_seed(seed)
    rows = torch.randint(len(WORDS), (count, length + 1), generator=g).tolist()
    return [" ".join(WORDS[i] for i in row[: length + n % 2]) for n, row in enumerate(rows)]


def state(model):
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def same_bits(model, before):
    return all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())
