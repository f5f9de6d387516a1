"""mergekit-extract-lora, unmodified, inside patch("mergekit"): its adapter against the optimum, and its own."""

import json

import pytest
import torch
from safetensors.torch import load_file

from laser_kernels import testing
from laser_kernels.compat import patch

pytest.importorskip("mergekit", reason="mergekit comes with make test-tools")
models = pytest.importorskip("tool_models", reason="transformers comes with make test-tools")

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")

RANK = 8
TOL = 1e-3


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Folders of a base model and a tuned one, and name -> difference of their projections."""
    root = tmp_path_factory.mktemp("mergekit")
    base, tuned = models.tiny_llama(0), models.tiny_llama(100)
    for name, model in (("base", base), ("tuned", tuned)):
        model.save_pretrained(root / name)
    before = dict(base.named_parameters())
    deltas = {n: (w - before[n]).detach() for n, w in tuned.named_parameters() if "proj" in n}
    return root, deltas


def extract(root, out, *options):
    from mergekit.scripts import extract_lora

    arguments = ["--model", root / "tuned", "--base-model", root / "base", "--out-path", out, "--max-rank", RANK]
    extract_lora.main(
        [str(a) for a in (*arguments, "--exclude-regex", "embed_tokens", "--exclude-regex", "lm_head", *options)],
        standalone_mode=False,
    )
    factors = load_file(out / "adapter_model.safetensors")
    config = json.loads((out / "adapter_config.json").read_text())
    return config, factors


@pytest.mark.parametrize("options", [(), ("--no-distribute-scale",), ("--sv-epsilon", "4.2")], ids=str)
def test_adapter_is_as_close_to_the_optimum_as_the_tools(pair, options, tmp_path, backend_calls):
    root, deltas = pair
    config, theirs = extract(root, tmp_path / "theirs", *options)
    assert backend_calls == []
    with patch("mergekit", tol=TOL):
        our_config, ours = extract(root, tmp_path / "ours", *options)
    assert len(backend_calls) == len(deltas)
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}
    assert our_config.keys() == config.keys() and our_config["rank_pattern"] == config["rank_pattern"]
    for name, delta in deltas.items():
        key = "base_model.model." + name.removesuffix(".weight")
        a, b = ours[key + ".lora_A.weight"], ours[key + ".lora_B.weight"]
        left = testing.residual(delta, b @ a)
        own = testing.residual(delta, theirs[key + ".lora_B.weight"] @ theirs[key + ".lora_A.weight"])
        floor = testing.FLOOR * testing.eps(torch.float32) * testing.norm(delta)
        assert left <= testing.residual_bound(delta, a.shape[0], TOL) and left <= (1 + TOL) * own + floor


def test_large_matrix(compare):
    from mergekit.scripts.extract_lora import TaskVectorDecompositionTask

    task = TaskVectorDecompositionTask.model_construct(max_rank=64)
    delta = testing.llm_like(2048, 2048)

    def extracted():
        a, b = task.execute(delta)
        return b @ a

    def patched():
        with patch("mergekit"):
            return extracted()

    compare("mergekit-extract-lora, 2048x2048, max rank 64", delta, 64, extracted, patched)
