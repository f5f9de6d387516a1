"""`laser-kernels search` end to end on a tiny model with a tokenizer of words, and what it leaves in its folder."""

import csv
import json
import sys

import pytest
from laser_models import WORDS, prompts, tiny
from test_laser_tasks import few_countries  # noqa: F401

from laser_kernels import cli
from laser_kernels.laser import Findings, Intervention, Scores, Trial, facts, heat_map
from laser_kernels.laser.command import parse_prompts
from laser_kernels.laser.tables import file_name


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Hugging Face folder."""
    tokenizers = pytest.importorskip("tokenizers", reason="the saved tokenizer is one of its")
    from transformers import PreTrainedTokenizerFast

    where = tmp_path_factory.mktemp("model")
    tiny().save_pretrained(where)
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="w0"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0").save_pretrained(where)
    return where


def test_search_by_perplexity_and_its_resume(folder, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="draws the heat map")
    text = tmp_path / "text.txt"
    text.write_text(" ".join(prompts(250)))
    out = tmp_path / "out"
    command = [
        "search",
        str(folder),
        "--task",
        "perplexity",
        "--text",
        str(text),
        "--layers",
        "2-3",
        "--rhos",
        "0.5,0.1",
    ]
    assert cli.main([*command, "--out", str(out)]) == 0
    first = capsys.readouterr().out
    assert "perplexity, validation" in first and "unchanged" in first
    assert {one.name for one in out.iterdir()} == {"trials.jsonl", "trials.csv", "perplexity.png", "verdicts.json"}
    rows = list(csv.DictReader((out / "trials.csv").read_text().splitlines()))
    assert len(rows) == 1 + 3 * 2 * 2 and {row["lname"] for row in rows} == {"", "fc_in", "fc_up", "fc_out"}
    assert (out / "perplexity.png").read_bytes()[:4] == b"\x89PNG"
    assert cli.main([*command, "--out", str(out)]) == 2 and "resume" in capsys.readouterr().err
    assert cli.main([*command, "--out", str(out), "--resume"]) == 0
    assert capsys.readouterr().out == first


def test_greedy_search_by_facts(folder, tmp_path, capsys, few_countries):  # noqa: F811
    pytest.importorskip("matplotlib", reason="draws the heat map")
    out = tmp_path / "out"
    words = ["capital=w20 {} w21", "capital={} w22"]
    code = cli.main(["search", str(folder), "--prompts", *words, "--rhos", "0.1", "--greedy", "--out", str(out)])
    assert code == 0
    printed = capsys.readouterr().out
    assert "capital: w20 X w21, validation" in printed and "capital: X w22, validation" in printed
    for verdict in json.loads((out / "verdicts.json").read_text()):
        assert (
            verdict["edits"] and 0 <= verdict["after"]["accuracy"] <= 1 and verdict["comparison"]["questions"] in (1, 2)
        )
    assert (out / "0" / "capital-w20-x-w21.png").exists() and (out / "1" / "trials.jsonl").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["search", "nowhere"], "is no folder"),
        (["search", "MODEL", "--task", "perplexity"], "--text FILE"),
        (["search", "MODEL", "--prompts", "The capital of {} is"], "capital='The capital of"),
        (["search", "MODEL", "--rhos", "a"], "fractions with commas"),
        (["search", "MODEL", "--matrices", "gate", "--prompts", "capital={} w1"], "unknown target 'gate'"),
        (["search", "MODEL", "--layers", "7", "--prompts", "capital={} w1"], "has layers 0-3"),
    ],
)
def test_errors_are_one_line(folder, tmp_path, capsys, few_countries, arguments, says):  # noqa: F811
    words = [str(folder) if word == "MODEL" else word for word in arguments]
    assert cli.main([*words, "--out", str(tmp_path / "out")]) == 2
    assert says in capsys.readouterr().err


def test_prompts_default_to_the_facts(folder):
    assert parse_prompts(None).keys() == facts.PROMPTS.keys()
    assert parse_prompts(["capital=a = {}", "capital={} b"]) == {"capital": ["a = {}", "{} b"]}


def test_missing_matplotlib_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    trial = Trial("mine", (Intervention("fc_in", 1, 9),), 0.5, 1.0)
    with pytest.raises(ImportError, match=r"laser-kernels\[search\]"):
        heat_map(Findings({"mine": Scores(0.5, 1.0)}, [trial]), "mine", tmp_path / "a.png")


def test_task_names_become_file_names():
    assert file_name("capital: The capital of X is") == "capital-the-capital-of-x-is"
