"""Scores of the built-in tasks against one prompt at a time, and the facts."""

import sys
from types import SimpleNamespace

import pytest
import torch
from laser_models import WORDS, Words, prompts, tiny

from laser_kernels.laser import Choice, NextToken, Scores, Text, facts
from laser_kernels.laser.likelihood import batches, continuation
from laser_kernels.laser.scores import evaluate


@pytest.fixture(scope="module")
def model():
    return tiny()


def log_probs(model, text):
    """(t, vocabulary) float64: what follows each position, the plain way."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([Words()(text)["input_ids"]])).logits[0].double().log_softmax(-1)


def test_batches_hold_each_sequence_once_without_padding():
    sequences = [[1] * n for n in (3, 5, 3, 3, 5, 2)]
    found = batches(sequences, batch_tokens=6)
    assert sorted(row for batch in found for row in batch.rows) == list(range(6))
    assert all(batch.tokens.tolist() == [sequences[row] for row in batch.rows] for batch in found)
    assert all(batch.tokens.numel() <= 6 for batch in found)


def test_next_token_is_the_most_probable_of_the_whole_vocabulary(model):
    texts, answers = prompts(12), prompts(12, seed=1, length=1)
    answers[0] = WORDS[log_probs(model, texts[0])[-1].argmax()] + " w3"  # right, and of two tokens
    scores = evaluate(NextToken(Words(), texts, answers), model)
    for row, (text, answer) in enumerate(zip(texts, answers, strict=True)):
        expected, token = log_probs(model, text)[-1], WORDS.index(answer.split()[0])
        assert scores.losses[row].item() == pytest.approx(-expected[token].item(), rel=1e-5)
        assert scores.right[row].item() == (expected.argmax().item() == token)
    assert scores.right[0] and scores.accuracy == scores.right.double().mean().item()


class Plain(torch.nn.Module):
    """A model that knows input_ids only, and gives bare logits."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, input_ids):
        return self.inner(input_ids=input_ids).logits


def test_a_model_without_transformers_options_scores_the_same(model):
    task = NextToken(Words(), prompts(5), prompts(5, seed=1, length=1))
    assert evaluate(task, Plain(model)).log_loss == pytest.approx(evaluate(task, model).log_loss, rel=1e-6)


def test_choice_sums_the_log_likelihood_of_each_options_tokens(model):
    texts, options = prompts(9), ["w1", "w2 w3", "w2 w4 w5", "w6", "w2 w3 w9"]
    right = [n % 5 for n in range(9)]
    scores = evaluate(Choice(Words(), texts, options, right), model)
    for row, text in enumerate(texts):
        sums = []
        for option in options:
            rows = log_probs(model, f"{text} {option}")[-len(option.split()) - 1 : -1]
            sums.append(sum(one[WORDS.index(word)] for one, word in zip(rows, option.split(), strict=True)))
        share = torch.stack(sums).log_softmax(0)
        assert scores.losses[row].item() == pytest.approx(-share[right[row]].item(), rel=1e-5)
        assert scores.right[row].item() == (share.argmax().item() == right[row])


def test_options_that_begin_alike_share_their_runs(model):
    calls = []
    handle = model.register_forward_pre_hook(lambda *_: calls.append(1))
    evaluate(Choice(Words(), ["w7 w8"], ["w1", "w2 w3", "w2 w3 w9", "w5 w6"], [0]), model)
    handle.remove()
    assert len(calls) == 2  # after "w2 w3", and after "w5"


def test_text_is_the_models_own_loss(model):
    text = " ".join(prompts(30))
    ids = torch.tensor(Words()(text)["input_ids"])
    windows = ids[: len(ids) // 16 * 16].view(-1, 16)
    with torch.no_grad():
        expected = model(input_ids=windows, labels=windows).loss.item()
    scores = evaluate(Text(Words(), text, window=16), model)
    assert scores.log_loss == pytest.approx(expected, rel=1e-5)
    assert scores.right is None and len(scores.losses) == len(windows)
    with pytest.raises(ValueError, match="at least one window"):
        Text(Words(), "w1 w2", window=3)


def test_a_tokenizer_that_changes_the_prompt_is_refused():
    def with_end(text):
        return {"input_ids": [*Words()(text)["input_ids"], 0]}

    with pytest.raises(ValueError, match="causal model's tokenizer"):
        continuation(with_end, "w1 w2", "w3")


def test_an_evaluation_may_give_a_mapping_and_nothing_else():
    assert evaluate(lambda model: {"accuracy": 0.5, "log_loss": 2}, None) == Scores(0.5, 2.0)
    told = evaluate(lambda m: {"accuracy": 0, "log_loss": 0, "right": [True, False], "losses": [1.0, 3.0]}, None)
    assert (told.accuracy, told.log_loss) == (0.5, 2.0)
    assert evaluate(lambda model: {"accuracy": 0.5, "log_loss": float("nan")}, None).log_loss == float("inf")
    with pytest.raises(ValueError, match="accuracy and log_loss"):
        evaluate(lambda model: 0.5, None)


class Country:
    """What countryinfo's object tells, of a few made-up countries."""

    TABLE = (
        ("w1", "w2", "Africa", 5e6, "AA"),
        ("w3", "w3 w4", "Asia", 5e6, "BB"),  # the name spells the capital out
        ("w5", "w6", "Europe", 5e6, "CC"),
        ("w7", "w8", "Oceania", 5e5, "DD"),  # too small
        ("w9", "w10", "Americas", 5e6, "EE"),
        ("w11", "w10", "Americas", 5e6, "EE"),  # a former state with another's code
        ("w12", "", "Polar", 5e6, "FF"),
    )

    def __init__(self, code):
        self.row = next(row for row in self.TABLE if row[4] == code)

    def name(self):
        return self.row[0]

    def info(self):
        name, capital, region, population, code = self.row
        return dict(name=name, capital=capital, region=region, population=population, ISO={"alpha2": code})


@pytest.fixture
def few_countries(monkeypatch):
    def every():
        found = []
        for row in Country.TABLE:
            one = Country(row[4])
            one.row = row
            found.append(one)
        return found

    stand_in = SimpleNamespace(CountryInfo=Country, CountryNotFoundError=StopIteration, all_countries=every)
    monkeypatch.setitem(sys.modules, "countryinfo", stand_in)


def test_countries_are_states_of_a_million_people(few_countries):
    assert [one.name for one in facts.countries()] == ["w1", "w3", "w5", "w9"]
    assert [one.name for one in facts.countries() if facts.spelled_out(one)] == ["w3"]


def test_halves_are_disjoint_and_the_same_for_every_prompt(few_countries, monkeypatch, model):
    names = [f"country {n}" for n in range(101)]
    one, other = facts.split(names)
    assert one | other == set(names) and not one & other and len(one) == 50
    assert facts.split(names[::-1]) == (one, other) != facts.split(names, seed=1)
    monkeypatch.setattr(facts, "CONTINENTS", {"Africa": "w20", "Americas": "w21", "Asia": "w22", "Europe": "w23 w24"})
    tasks = facts.country_tasks(Words(), {"capital": ["w30 {} w31", "{} w32"], "continent": ["{} w33"]})
    assert [task.name for task in tasks] == ["capital: w30 X w31", "capital: X w32", "continent: X w33"]
    assert [len(task.validation) + len(task.test) for task in tasks] == [3, 3, 4]
    assert len({len(task.validation) for task in tasks[:2]}) == 1
    assert 0 <= evaluate(tasks[2].validation, model).accuracy <= 1


def test_bad_facts_and_prompts_say_what_there_is(few_countries):
    with pytest.raises(ValueError, match="capital, continent"):
        facts.country_tasks(Words(), {"river": ["{}"]})
    with pytest.raises(ValueError, match=r"needs \{\} once"):
        facts.country_tasks(Words(), {"capital": ["w1"]})


def test_missing_countryinfo_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "countryinfo", None)
    with pytest.raises(ImportError, match=r"laser-kernels\[search\]"):
        facts.countries()


def test_real_countries():
    pytest.importorskip("countryinfo", reason="the extra `search` installs the facts")
    known = {one.name: one for one in facts.countries()}
    assert 150 <= len(known) <= 170 and known["France"][1:] == ("Paris", "Europe")
    assert "Burma" not in known and "Scotland" not in known and "Monaco" not in known
    assert {name for name in known if facts.spelled_out(known[name])} >= {"Singapore", "Kuwait", "Tunisia"}
