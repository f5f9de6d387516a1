"""Tiny language models and a tokenizer of words: what the tests of laser_kernels.laser search."""

import pytest
import torch

from laser_kernels.laser import NextToken, Task
from laser_kernels.testing import orthonormal

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
    rows = torch.randint(len(WORDS), (count, length + 1), generator=g, device="cpu").tolist()
    return [" ".join(WORDS[i] for i in row[: length + n % 2]) for n, row in enumerate(rows)]


RHOS = (0.5, 0.25, 0.125)
PLANTED = "model.layers.2.mlp.up_proj.weight"


def labelled(model, count=40, seed=0):
    """The task that `model` solves perfectly: its own next tokens are the answers."""
    texts = prompts(count, seed)
    answers = []
    with torch.no_grad():
        for text in texts:
            answers.append(WORDS[model(input_ids=torch.tensor([Words()(text)["input_ids"]])).logits[0, -1].argmax()])
    half = count // 2
    return Task("planted", *(NextToken(Words(), texts[s], answers[s]) for s in (slice(half), slice(half, None))))


def plant(model, name, rank=4, signal=12.0, noise=10.0, seed=3):
    """A matrix of rank `rank`, and a function that adds noise outside its singular spaces, so that truncation removes it."""
    weight = model.get_parameter(name)
    m, n = weight.shape
    u, v = orthonormal(m, min(m, n), seed), orthonormal(n, min(m, n), seed + 1)
    sigma = torch.full((min(m, n),), noise).double()
    sigma[:rank] = 0
    clean = (u[:, :rank] * signal) @ v[:, :rank].mT
    with torch.no_grad():
        weight.copy_(clean)

    def add():
        with torch.no_grad():
            weight.copy_(clean + (u * sigma) @ v.mT)

    return add


def noisy():
    """(model with noise in PLANTED, the task it solved before)."""
    model = tiny()
    add = plant(model, PLANTED)
    task = labelled(model)
    add()
    return model, task


def state(model):
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def same_bits(model, before):
    return all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())


class Crossing(torch.nn.Module):
    """Layers of which the last reads what the first one gave: no chain."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.layers = torch.nn.ModuleList(torch.nn.Linear(16, 16, bias=False) for _ in range(4))

    def forward(self, x):
        first = self.layers[0](x)
        middle = self.layers[2](self.layers[1](first).relu()).relu()
        return self.layers[3](middle) + first


def regression(model):
    """A user's own evaluation, of a model that is no language model."""
    x = torch.randn(32, 16, generator=torch.Generator().manual_seed(6), device="cpu").to(model.layers[0].weight)
    y = model(x)
    return {"accuracy": (y > 0).float().mean().item(), "log_loss": y.square().mean().item()}
