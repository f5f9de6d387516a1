"""Peak memory of one whole run on a checkpoint larger than the budget.

    python bench/memory.py [--budget 1GiB] [--gib 8]

Builds an 8 GiB bf16 llama-like checkpoint in 8 shards (hidden size 4096, MLP 11008), reduces four
of its MLP matrices to rank 16 with `python -m laser_kernels reduce ... --memory-budget 1GiB` as a
subprocess, and reads the peak resident memory of that process (ru_maxrss of os.wait4: interpreter,
torch and mapped files that are resident included). Exit code 1 where it exceeds the budget by more
than 600 MiB or the run fails. The four matrices hold Gaussian numbers; all others are holes in
sparse files (zeros), so that building is quick; the output is written in full. Needs 20 GB of free
disk, gives it back.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np  # and no torch: a fork of a large parent would count its memory as the child's

ROOT = Path(__file__).resolve().parents[1]
GIB, MIB = 1 << 30, 1 << 20
ALLOWANCE = 600 * MIB
FREE_NEEDED = 20 * 10**9
HIDDEN, INNER, VOCABULARY = 4096, 11008, 32000
RANK, REDUCED = 16, (0, 7)  # layers whose up_proj and down_proj are reduced
PLAN = f"""rules:
  - targets: ['re:model\\.layers\\.({"|".join(map(str, REDUCED))})\\.mlp\\.(up|down)_proj\\.weight']
    layers: all
    rank: {RANK}
"""
LAYER = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (HIDDEN, HIDDEN),
    "self_attn.v_proj": (HIDDEN, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INNER, HIDDEN),
    "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}


def parameters(gib: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes: an embedding and as many layers as fill `gib` GiB of bf16."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN)}
    layer_bytes = 2 * sum(rows * cols for rows, cols in LAYER.values())
    layers = round((gib * GIB - 2 * VOCABULARY * HIDDEN) / layer_bytes)
    for layer in range(layers):
        for part, shape in LAYER.items():
            shapes[f"model.layers.{layer}.{part}.weight"] = shape
        shapes[f"model.layers.{layer}.input_layernorm.weight"] = (HIDDEN,)
    shapes["model.norm.weight"] = (HIDDEN,)
    return shapes


def is_reduced(name: str) -> bool:
    """Whether the plan names this matrix."""
    wanted = [f"layers.{layer}.mlp.{side}_proj." for layer in REDUCED for side in ("up", "down")]
    return any(part in name for part in wanted)


def write_gaussian(stream, offset: int, shape: tuple[int, ...], seed: int) -> None:
    """Gaussian bf16 numbers, 256 rows at a time: the upper halves of fp32."""
    rows, cols = shape
    made = np.random.default_rng(seed)
    stream.seek(offset)
    for _ in range(0, rows, 256):
        block = made.standard_normal((256, cols), dtype=np.float32) / np.float32(cols**0.5)
        stream.write((block.view(np.uint32) >> 16).astype(np.uint16).tobytes())


def write_shard(file: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """One safetensors file: sparse but for the reduced matrices."""
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in shapes.items():
        end = offset + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        start = stream.tell()
        stream.truncate(start + offset)
        for seed, (name, shape) in enumerate(shapes.items()):
            if is_reduced(name):
                write_gaussian(stream, start + header[name]["data_offsets"][0], shape, seed)


def build(folder: Path, gib: int) -> int:
    """The checkpoint: `gib` shards, an index, a config. Returns the bytes of its tensors."""
    folder.mkdir()
    shapes = parameters(gib)
    total = sum(2 * int(np.prod(shape)) for shape in shapes.values())
    shards: list[dict[str, tuple[int, ...]]] = [{} for _ in range(gib)]
    done = 0
    for name, shape in shapes.items():
        shards[min(gib - 1, done * gib // total)][name] = shape
        done += 2 * int(np.prod(shape))
    weight_map = {}
    for index, members in enumerate(shards, start=1):
        file = f"model-{index:05d}-of-{gib:05d}.safetensors"
        write_shard(folder / file, members)
        weight_map |= dict.fromkeys(members, file)
    index_file = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index_file))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": len([name for name in shapes if "q_proj" in name]),
        "num_attention_heads": 32,
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": True,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return total


def size(text: str) -> int:
    """1GiB, 512MiB or bytes."""
    for unit, factor in (("GiB", GIB), ("MiB", MIB)):
        if text.endswith(unit):
            return int(float(text.removesuffix(unit)) * factor)
    return int(text)


def run(command: list[str]) -> tuple[int, float, int]:
    """(exit code, seconds, peak resident bytes) of a subprocess."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, time.perf_counter() - start, usage.ru_maxrss * 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--budget", default="1GiB")
    parser.add_argument("--gib", type=int, default=8, help="size of the checkpoint and its shards")
    parser.add_argument("--where", type=Path, default=ROOT / ".cache", help="scratch folder")
    options = parser.parse_args()
    options.where.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(options.where).free
    if free < FREE_NEEDED:
        print(f"only {free / 1e9:.0f} GB free in {options.where}, {FREE_NEEDED / 1e9:.0f} needed")
        return 2
    with tempfile.TemporaryDirectory(prefix=".memory-", dir=options.where) as scratch:
        source, destination, plan = (Path(scratch, name) for name in ("src", "dst", "plan.yaml"))
        total = build(source, options.gib)
        plan.write_text(PLAN)
        print(f"checkpoint: {total / GIB:.2f} GiB in {options.gib} shards", flush=True)
        reduce = [sys.executable, "-m", "laser_kernels", "reduce", str(source), str(destination)]
        reduce += ["--plan", str(plan), "--memory-budget", options.budget]
        baseline = run([sys.executable, "-c", "import laser_kernels"])[2]
        code, seconds, peak = run(reduce)
        written = sum(file.stat().st_size for file in destination.glob("*.safetensors"))
    limit = size(options.budget) + ALLOWANCE
    print(f"exit code {code}, {seconds:.1f} s, {written / GIB:.2f} GiB written")
    print(
        f"peak resident memory {peak / MIB:.0f} MiB (import alone {baseline / MIB:.0f}); "
        f"limit {options.budget} + {ALLOWANCE // MIB} MiB = {limit / MIB:.0f} MiB"
    )
    ok = code == 0 and peak <= limit and written >= total
    print("ok" if ok else "FAILED")
    return 0 if ok else 1


if __name__ == "__main__":
    raise SystemExit(main())
