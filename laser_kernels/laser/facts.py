"""Facts about countries as questions: capitals and continents from the package countryinfo (MIT; no download of its own)."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from laser_kernels.laser.tasks import Choice, NextToken, Task
from laser_kernels.packages import require

# {} is the country. The first of each is the default of the command line.
PROMPTS: Mapping[str, tuple[str, ...]] = {
    "capital": ("The capital of {} is", "The capital city of {} is", "{}'s capital is"),
    "continent": ("{} is located in the continent of", "{} is a country in"),
}
CONTINENTS = {"Africa": "Africa", "Americas": "the Americas", "Asia": "Asia", "Europe": "Europe", "Oceania": "Oceania"}
POPULATION = 1_000_000  # of the smallest country asked about: 158 of them in countryinfo 1.0.1
VALIDATION = 0.5  # the paper's fifth of 158 countries would be 32 questions: too few to choose among hundreds by


class Country(NamedTuple):
    name: str
    capital: str
    region: str


def countries() -> list[Country]:
    """Countries of ISO 3166 with a million people, a capital and a continent, by name.

    Raises:
        ImportError: countryinfo is missing; it names the extra that installs it.
    """
    require("countryinfo", "countries", "search", "countryinfo >= 1.0 (Python 3.11 or later)")
    from countryinfo import CountryInfo, CountryNotFoundError, all_countries

    found = {}
    for country in all_countries():
        assert isinstance(country, CountryInfo)
        about = country.info()
        code = (about.get("ISO") or {}).get("alpha2")
        try:  # former states and parts of states repeat the code of the state that has it now
            owner = CountryInfo(code).name() if code else None
        except CountryNotFoundError:
            owner = None
        name, capital, region = about["name"], about.get("capital"), about.get("region")
        if owner == name and (about.get("population") or 0) >= POPULATION and capital and region in CONTINENTS:
            found[name] = Country(name, capital, region)
    return [found[name] for name in sorted(found)]


def spelled_out(country: Country) -> bool:
    """Whether the name gives the capital away (Singapore, Kuwait City, Tunis), so that copying answers the question."""
    name, capital = country.name.lower(), country.capital.lower()
    return capital in name or name in capital


def split(names: Sequence[str], validation: float = VALIDATION, seed: int = 0) -> tuple[set[str], set[str]]:
    """(names for validation, names for the test): disjoint, a function of the seed and the set of names alone."""
    if not 0 < validation < 1:
        raise ValueError(f"[laser_kernels::facts] validation must be a share in (0, 1); got {validation!r}")
    shuffled = sorted(names)
    random.Random(seed).shuffle(shuffled)
    cut = round(len(shuffled) * validation)
    return set(shuffled[:cut]), set(shuffled[cut:])


def _task(tokenizer: Any, fact: str, prompt: str, halves: Sequence[set[str]], known: Sequence[Country]) -> Task:
    evaluations: list[Any] = []
    for half in halves:
        asked = [country for country in known if country.name in half]
        texts = [prompt.format(country.name) for country in asked]
        if fact == "capital":
            evaluations.append(NextToken(tokenizer, texts, [country.capital for country in asked]))
        else:
            places = list(CONTINENTS)
            right = [places.index(country.region) for country in asked]
            evaluations.append(Choice(tokenizer, texts, list(CONTINENTS.values()), right))
    return Task(f"{fact}: {prompt.format('X')}", *evaluations)


def country_tasks(
    tokenizer: Any,
    prompts: Mapping[str, Sequence[str]] = PROMPTS,
    *,
    validation: float = VALIDATION,
    seed: int = 0,
) -> list[Task]:
    """One Task per fact and prompt. Capitals: the first token of the capital must be the most probable of the vocabulary.
    Continents: the right one of five must be the most probable.

    A country is in the validation part of all tasks or of none, so what is chosen by one prompt has not seen the test of
    another. Capitals that the country's name spells out are not asked.

    Args:
        tokenizer: of a causal model.
        prompts: capital or continent -> texts with {} for the country.
        validation: the share of countries that choose; the others are the test.
        seed: of the split.

    Raises:
        ImportError: countryinfo is missing. ValueError: an unknown fact, or a prompt without {}.
    """
    known = countries()
    halves = split([country.name for country in known], validation, seed)
    tasks = []
    for fact, texts in prompts.items():
        if fact not in PROMPTS:
            raise ValueError(f"[laser_kernels::facts] no fact {fact!r}: there are {', '.join(PROMPTS)}")
        asked = [country for country in known if fact != "capital" or not spelled_out(country)]
        for text in texts:
            if text.count("{}") != 1:
                raise ValueError(f"[laser_kernels::facts] a prompt needs {{}} once, for the country; got {text!r}")
            tasks.append(_task(tokenizer, fact, text, halves, asked))
    return tasks
