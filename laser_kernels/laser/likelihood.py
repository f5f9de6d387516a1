"""What a causal model says after given tokens: batches without padding, and only the last positions' logits."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

# Tokens in one forward pass: on a CPU products are at their speed by then, and hidden states of 4096 features take 64 MB.
BATCH_TOKENS = 4096


class Batch(NamedTuple):
    """Sequences of one length: `tokens` (b, t); `rows` are their positions in the caller's list."""

    rows: list[int]
    tokens: Tensor


def batches(sequences: Sequence[Sequence[int]], batch_tokens: int = BATCH_TOKENS) -> list[Batch]:
    """Sequences by length, so that nothing is padded: no mask, and positions are those of a single sequence."""
    by_length: dict[int, list[int]] = {}
    for row, sequence in enumerate(sequences):
        by_length.setdefault(len(sequence), []).append(row)
    found = []
    for length, rows in sorted(by_length.items()):
        step = max(1, batch_tokens // length)
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            found.append(Batch(part, torch.tensor([list(sequences[row]) for row in part], device="cpu")))
    return found


def last_log_probs(model: Any, groups: Sequence[Batch], last: int) -> Iterator[tuple[Batch, Tensor]]:
    """(batch, log p of the token that follows each of the last `last` positions: (b, last, vocabulary) float32)."""
    device = next(model.parameters()).device
    options: dict[str, Any] = {}
    known = inspect.signature(model.forward).parameters
    if "logits_to_keep" in known:  # transformers: the head multiplies these positions only
        options["logits_to_keep"] = last
    if "use_cache" in known:
        options["use_cache"] = False
    for batch in groups:
        output = model(input_ids=batch.tokens.to(device), **options)
        logits = getattr(output, "logits", output)
        yield batch, logits[:, -last:].float().log_softmax(-1)


def continuation(tokenizer: Any, prompt: str, answer: str) -> tuple[list[int], list[int]]:
    """The tokens of `prompt`, and those that " " + `answer` adds to it.

    Raises:
        ValueError: the tokenizer changes the prompt's tokens when the answer follows, as one of a masked model does.
    """
    before = list(tokenizer(prompt)["input_ids"])
    after = list(tokenizer(f"{prompt} {answer}")["input_ids"])
    if after[: len(before)] != before or len(after) == len(before):
        raise ValueError(
            f"[laser_kernels::tasks] the tokens of {prompt!r} must begin those of the prompt with {answer!r}; got {before} "
            f"and {after}: use a causal model's tokenizer, and a prompt without a space at its end"
        )
    return before, after[len(before) :]
