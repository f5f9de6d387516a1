"""The rules that keep the folders apart, and the documents true to the tree."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def sources(folder, *suffixes):
    return [p for p in (ROOT / folder).rglob("*") if p.suffix in suffixes]


@pytest.mark.parametrize("word", ["torch/", "ATen", "Python.h", "pybind"])
def test_csrc_knows_neither_torch_nor_python(word):
    files = sources("csrc", ".hpp", ".cpp", ".cuh", ".cu")
    assert files
    assert [p.name for p in files if re.search(rf"#include.*{word}", p.read_text())] == []


def test_the_seam_holds_no_kernel_and_uses_the_stable_abi_only():
    for p in sources("python", ".hpp", ".cpp"):
        text = p.read_text()
        assert "__global__" not in text and "<<<" not in text, p
        assert not re.search(r"#include <(ATen|c10|torch/extension)", text), p


def test_schemas_are_written_once():
    places = [p for p in sources("python", ".cpp") if "STABLE_TORCH_LIBRARY(" in p.read_text()]
    assert [p.name for p in places] == ["ops_cpu.cpp"]


def test_certificate_and_status_agree_between_cpp_and_python():
    from laser_kernels.ops import CERTIFICATE
    from laser_kernels.status import Status

    struct = re.search(r"struct Certificate \{(.*?)\};", (ROOT / "csrc/core/request.hpp").read_text(), re.S).group(1)
    assert tuple(re.findall(r"double (\w+);", struct)) == CERTIFICATE
    enum = re.search(
        r"enum class Status : int \{(.*?)\};", (ROOT / "csrc/core/certificate.hpp").read_text(), re.S
    ).group(1)
    codes = {re.sub(r"(?<!^)(?=[A-Z])", "_", k).upper(): int(v) for k, v in re.findall(r"k(\w+) = (\d)", enum)}
    assert {s.name: s.value for s in Status} == {k: v for k, v in codes.items() if k != "RUNNING"}


def test_every_file_in_the_readmes_layout_table_exists():
    table = re.findall(r"^\| `([\w./]+)` \|", (ROOT / "README.md").read_text(), re.M)
    assert len(table) >= 6
    assert [name for name in table if not (ROOT / name).exists()] == []


def test_the_version_is_written_once():
    from laser_kernels import __version__

    assert f"version: {__version__}" in (ROOT / "CITATION.cff").read_text()
    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text()
