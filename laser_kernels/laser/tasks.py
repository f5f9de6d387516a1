"""What a search measures: questions with one right token, questions with options, and the perplexity of a text."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from laser_kernels.laser.likelihood import batches, continuation, last_log_probs
from laser_kernels.laser.scores import Evaluate, Scores

WINDOW = 256  # tokens: enough that the first few, which have little before them, do not decide; short enough for a CPU


@dataclass(frozen=True)
class Task:
    """What an intervention is judged by.

    Attributes:
        name: of the task, in tables and files.
        validation: model -> Scores (or a mapping with accuracy and log_loss): decides every pick.
        test: the same on questions that no pick has seen; called for the pick and for the unchanged model only.
    """

    name: str
    validation: Evaluate
    test: Evaluate | None = None


def fingerprint(function: Evaluate) -> str | None:
    """What tells two built-in evaluations apart across processes; None for a user's function."""
    identity = getattr(function, "identity", None)
    return hashlib.blake2b(json.dumps(identity).encode(), digest_size=16).hexdigest() if identity else None


class NextToken:
    """Right where the most probable next token of the whole vocabulary is the answer's first. Loss: -log p of that token.

    Args:
        tokenizer: of the model, as transformers has them.
        prompts, answers: one answer per prompt; a space is put between them.

    References:
        How LASER's paper scores CounterFact (section 4; there, as here, the answer is the first token).
    """

    def __init__(self, tokenizer: Any, prompts: Sequence[str], answers: Sequence[str]):
        pairs = [continuation(tokenizer, *pair) for pair in zip(prompts, answers, strict=True)]
        if not pairs:
            raise ValueError("[laser_kernels::NextToken] there are no questions")
        self.identity = [[prompt, answer[0]] for prompt, answer in pairs]
        self._groups = batches([prompt for prompt, _ in pairs])
        self._answers = torch.tensor([answer[0] for _, answer in pairs], device="cpu")

    def __len__(self) -> int:
        return len(self._answers)

    def __call__(self, model: Any) -> Scores:
        right = torch.zeros(len(self), dtype=torch.bool, device="cpu")
        losses = torch.zeros(len(self), dtype=torch.float64, device="cpu")
        for batch, found in last_log_probs(model, self._groups, 1):
            answers = self._answers[batch.rows].to(found.device)
            right[batch.rows] = (found[:, 0].argmax(-1) == answers).cpu()
            losses[batch.rows] = -found[:, 0].gather(1, answers[:, None])[:, 0].double().cpu()
        return Scores.of(right, losses)


class Choice:
    """Right where the right option has the largest log-likelihood after the prompt, summed over its tokens.

    Loss: -log of the right option's share, softmax over the options' log-likelihoods.

    Args:
        tokenizer: as for NextToken.
        prompts, right: per question, the text and the index of its right option.
        options: the same for all questions.
    """

    def __init__(self, tokenizer: Any, prompts: Sequence[str], options: Sequence[str], right: Sequence[int]):
        if not prompts or len(options) < 2 or len(prompts) != len(right) or not set(right) <= set(range(len(options))):
            raise ValueError(
                "[laser_kernels::Choice] takes at least one prompt, two options, and the right option's index per prompt; "
                f"got {len(prompts)} prompts, {len(options)} options, indices {sorted(set(right))}"
            )
        self.identity = [list(prompts), list(options), list(right)]
        self._right = torch.tensor(list(right), device="cpu")
        # An option's last token need not be seen, and a run that sees more than an option needs serves it, too.
        columns = [[continuation(tokenizer, prompt, option) for prompt in prompts] for option in options]
        longest = sorted(range(len(options)), key=lambda index: -max(len(answer) for _, answer in columns[index]))
        runs: list[tuple[list[list[int]], int, list[tuple[int, Tensor]]]] = []
        for index in longest:
            lengths = {len(answer) for _, answer in columns[index]}
            if len(lengths) > 1:
                raise ValueError(
                    f"[laser_kernels::Choice] option {options[index]!r} has {sorted(lengths)} tokens after different prompts"
                )
            seen = [prompt + answer[:-1] for prompt, answer in columns[index]]
            served = (index, torch.tensor([answer for _, answer in columns[index]], device="cpu"))
            for sequences, _, serves in runs:
                if all(more[: len(one)] == one for more, one in zip(sequences, seen, strict=True)):
                    serves.append(served)
                    break
            else:
                runs.append((seen, max(lengths), [served]))
        self._runs = [(batches(sequences), length, serves) for sequences, length, serves in runs]
        self._options = len(options)

    def __len__(self) -> int:
        return len(self._right)

    def __call__(self, model: Any) -> Scores:
        likelihood = torch.zeros(len(self), self._options, dtype=torch.float64, device="cpu")
        for groups, length, serves in self._runs:
            for batch, found in last_log_probs(model, groups, length):
                for index, tokens in serves:
                    wanted = tokens[batch.rows].to(found.device)
                    picked = found[:, : wanted.shape[1]].gather(2, wanted[:, :, None])
                    likelihood[batch.rows, index] = picked.double().sum((1, 2)).cpu()
        share = likelihood.log_softmax(1)
        return Scores.of(share.argmax(1) == self._right, -share.gather(1, self._right[:, None])[:, 0])


class Text:
    """A text in windows that do not overlap: exp(log_loss) is its perplexity; accuracy: the next token was most probable.

    A question is a window, not a token, so that paired intervals see what belongs together; `right` is not told.

    Args:
        tokenizer: as for NextToken.
        text: at least one window long; what does not fill a window at the end is left out.
        window: in tokens; the first of each is only read.
    """

    def __init__(self, tokenizer: Any, text: str, window: int = WINDOW):
        tokens = list(tokenizer(text)["input_ids"])
        count = len(tokens) // window
        if window < 2 or not count:
            raise ValueError(
                f"[laser_kernels::Text] needs at least one window of {window} >= 2 tokens; got {len(tokens)} tokens"
            )
        self.identity = [window, tokens[: count * window]]
        self._groups = batches([tokens[i * window : (i + 1) * window] for i in range(count)])
        self._window, self._count = window, count

    def __len__(self) -> int:
        return self._count

    def __call__(self, model: Any) -> Scores:
        hits, losses = 0, torch.zeros(self._count, dtype=torch.float64, device="cpu")
        for batch, found in last_log_probs(model, self._groups, self._window):
            following = batch.tokens[:, 1:].to(found.device)
            hits += int((found[:, :-1].argmax(-1) == following).sum())
            losses[batch.rows] = -found[:, :-1].gather(2, following[:, :, None])[:, :, 0].double().mean(1).cpu()
        means = Scores.of(losses.isfinite(), losses)
        return Scores(hits / (self._count * (self._window - 1)), means.log_loss, None, means.losses)
