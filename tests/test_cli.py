"""The command line: output, exit codes, and one line instead of a traceback."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
import tiny_checkpoints as tiny

import laser_kernels as lk
from laser_kernels.arguments import parse_bytes
from laser_kernels.cli import main


@pytest.fixture
def src(tmp_path):
    return tiny.llama(tmp_path / "a")


def test_plan_prints_a_table_and_writes_nothing(src, tmp_path, capsys):
    before = tiny.contents(tmp_path)
    assert main(["plan", str(src), "--targets", "mlp,q_proj", "--layers", "1-2", "--rank", "0.25"]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0].split() == ["tensor", "shape", "dtype", "rank", "route", "seconds"]
    assert len([line for line in lines if line.startswith("model.layers.")]) == 8
    row = next(line for line in lines if "1.mlp.down_proj" in line).split()
    assert row[1:4] == ["24x40", "BF16", "6"]
    assert "8 of 26 tensors" in out and err == ""
    assert tiny.contents(tmp_path) == before


def test_plan_reads_only_headers(src, capsys):
    path = src / "model.safetensors"
    size = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    total = path.stat().st_size
    with open(path, "r+b") as stream:  # data that cannot be weights: NaN everywhere
        stream.seek(size)
        stream.write(b"\xff" * (total - size))
    assert main(["plan", str(src), "--targets", "all", "--rank", "2", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert len(result["tensors"]) == 21
    assert set(result["tensors"][0]) == {"name", "shape", "dtype", "rank", "route", "seconds"}
    assert result["output_bytes"] == total == result["source_bytes"]
    assert result["architecture"] == "llama"


def test_plan_of_a_yaml_file(src, tmp_path, capsys):
    (tmp_path / "plan.yaml").write_text('rules: [{targets: [fc_in, "re:q_proj"], layers: "0-1", rank: 3}]')
    assert main(["plan", str(src), "--plan", str(tmp_path / "plan.yaml"), "--json"]) == 0
    assert [row["rank"] for row in json.loads(capsys.readouterr().out)["tensors"]] == [3] * 4


def test_reduce_and_verify(src, tmp_path, capsys):
    dst = tmp_path / "b"
    assert main(["reduce", str(src), str(dst), "--targets", "fc_in", "--rank", "2", "--seed", "4", "--json"]) == 0
    out, _ = capsys.readouterr()
    assert json.loads(out) == json.loads((dst / "laser_report.json").read_text())
    assert main(["verify", str(src), str(dst)]) == 0
    assert "as reported; 3 reduced matrices, 23 untouched" in capsys.readouterr().out
    (dst / "tokenizer.json").write_text("x")
    assert main(["verify", str(src), str(dst), "--json"]) == 1
    result = json.loads(capsys.readouterr().out)
    assert result["ok"] is False and "tokenizer.json" in result["differences"][0]


def test_reduce_says_what_it_did(src, tmp_path, capsys):
    assert main(["reduce", str(src), str(tmp_path / "b"), "--targets", "fc_in", "--layers", "2-9", "--rank", "2"]) == 0
    out, err = capsys.readouterr()
    assert "1 matrices reduced" in out
    assert "nothing to reduce in layers 3-9" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["plan", "{src}"], ["--targets", "--rank", "--plan"]),
        (["plan", "{src}", "--targets", "fc_inn", "--rank", "2"], ["fc_inn", "fc_in", "re:REGEX"]),
        (["plan", "{src}", "--targets", "re:nope", "--rank", "2"], ["re:nope", "model.layers.0"]),
        (["plan", "{src}", "--targets", "mlp", "--rank", "0"], ["rank"]),
        (["plan", "{src}", "--targets", "mlp", "--rank", "x"], ["rank", "'x'"]),
        (["plan", "{src}", "--targets", "mlp", "--rank", "2", "--layers", "30-40"], ["30-40", "0-2"]),
        (["plan", "{src}", "--targets", "mlp", "--rank", "2", "--layers", "4-1"], ["4-1"]),
        (["plan", "{src}", "--targets", "mlp", "--rank", "2", "--memory-budget", "big"], ["1GiB", "big"]),
        (["plan", "{src}", "--plan", "x.yaml", "--rank", "2"], ["--plan", "--rank"]),
        (["plan", "{src}", "--plan", "missing.yaml"], ["missing.yaml"]),
        (["plan", "{src}/nowhere", "--targets", "mlp", "--rank", "2"], ["nowhere", "does not exist"]),
        (["reduce", "{src}", "{src}", "--targets", "mlp", "--rank", "2"], ["source itself"]),
        (["reduce", "{src}", "{src}/../b", "--targets", "mlp", "--rank", "2", "--device", "cpu,cpu"], ["device"]),
        (["reduce", "{src}", "{src}/../b", "--targets", "mlp", "--rank", "2", "--tol", "-1"], ["tol"]),
        (["verify", "{src}", "{src}"], ["laser_report.json"]),
        ([], ["required: COMMAND"]),
        (["frobnicate"], ["frobnicate"]),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(src, tmp_path, capsys, arguments, words):
    before = tiny.contents(tmp_path)
    assert main([argument.format(src=src) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "Traceback" not in err
    last = err.strip().splitlines()[-1]
    assert "error:" in last and last.startswith("laser-kernels")
    for word in words:
        assert word in err
    assert tiny.contents(tmp_path) == before


@pytest.mark.parametrize(
    ("text", "size"),
    [("1GiB", 2**30), ("512 MiB", 2**29), ("2GB", 2 * 10**9), ("1.5k", 1500), ("77", 77), ("3g", 3 * 10**9)],
)
def test_sizes(text, size):
    assert parse_bytes(text) == size


def test_help():
    code = "import sys; from laser_kernels.cli import main; sys.exit(main(['--help']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    for command in ("plan", "reduce", "verify", "bench", "extract", "resize", "scan", "search"):
        assert re.search(rf"^ +{command} ", done.stdout, re.M), command


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"laser-kernels {lk.__version__}\n"


def test_as_a_module(src, tmp_path):
    command = [sys.executable, "-m", "laser_kernels", "reduce", str(src), str(tmp_path / "b")]
    done = subprocess.run([*command, "--targets", "attn", "--rank", "0.5"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "12 matrices reduced" in done.stdout
