"""`laser-kernels search`: arguments in; trials, table, CSV and heat maps out. 0 fine, also where nothing helped."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from laser_kernels.packages import require

if TYPE_CHECKING:
    from laser_kernels.laser.tasks import Task
    from laser_kernels.laser.verdict import Verdict

TASKS = ("country-facts", "perplexity")
TRIALS = "trials.jsonl"
HELP = "find the intervention that makes a language model better at a task"


def _rhos(text: str) -> list[float]:
    try:
        return [float(word) for word in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be fractions with commas between them (0.1,0.05); got {text!r}"
        ) from None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("model", metavar="MODEL", help="a Hugging Face folder of a causal model with its tokenizer")
    parser.add_argument(
        "--task", choices=TASKS, default=TASKS[0], help="country-facts (default), or perplexity of --text"
    )
    parser.add_argument(
        "--prompts", nargs="+", metavar="FACT=TEXT", help="capital='The capital of {} is', continent=..."
    )
    parser.add_argument("--text", type=Path, metavar="FILE", help="for perplexity: its first half validates")
    parser.add_argument("--matrices", default="mlp", help="as --targets of reduce; groups matrix by matrix (mlp)")
    parser.add_argument("--layers", help="9-29, a comma list, or all (default)")
    parser.add_argument(
        "--rhos", type=_rhos, help="fractions of the rank to keep (the paper's: .9,.8,.6,.2,.1,.05,.01)"
    )
    parser.add_argument("--greedy", action="store_true", help="compose, from the last layer down, for each task")
    parser.add_argument("--validation", type=float, default=0.5, help="share of the countries that chooses (0.5)")
    parser.add_argument(
        "--out", type=Path, default="laser-search", metavar="DIR", help="of trials, CSV, PNG (laser-search)"
    )
    parser.add_argument("--resume", action="store_true", help="go on with what a killed search left in DIR")
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16", "float16"], default="float32", help="to run in (float32)"
    )
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--tol", type=float, default=1e-3, help="accepted excess over the optimal residual (1e-3)")
    parser.add_argument("--seed", type=int, default=0, help="of split and sketches (0)")


def load(folder: str, dtype: str = "float32", device: str = "cpu") -> tuple[Any, Any]:
    """(model in eval mode, tokenizer) of a local Hugging Face folder; nothing is downloaded, no code of it is run.

    Raises:
        ImportError: transformers is missing. ValueError: no such folder.
    """
    if not Path(folder).is_dir():
        raise ValueError(f"{folder}: is no folder: download the model first")
    import torch

    require("transformers", "search", "search")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=getattr(torch, dtype))
    return model.eval().to(device), tokenizer


def parse_prompts(texts: Sequence[str] | None) -> dict[str, list[str]]:
    """fact -> prompts, from FACT=TEXT words; the default of facts.PROMPTS without any."""
    from laser_kernels.laser.facts import PROMPTS

    if not texts:
        return {fact: list(prompts) for fact, prompts in PROMPTS.items()}
    found: dict[str, list[str]] = {}
    for word in texts:
        fact, equals, text = word.partition("=")
        if not equals:
            raise ValueError(f"--prompts must look like capital='The capital of {{}} is'; got {word!r}")
        found.setdefault(fact, []).append(text)
    return found


def tasks_of(args: argparse.Namespace, tokenizer: Any) -> list[Task]:
    """The built-in tasks that the arguments name."""
    from laser_kernels.laser.facts import country_tasks
    from laser_kernels.laser.tasks import Task, Text

    if args.task == "country-facts":
        prompts = parse_prompts(args.prompts)
        return country_tasks(tokenizer, prompts, validation=args.validation, seed=args.seed)
    if args.text is None:
        raise ValueError("--task perplexity needs --text FILE")
    text = args.text.read_text("utf-8")
    middle = text.find(" ", len(text) // 2)
    return [Task("perplexity", Text(tokenizer, text[:middle]), Text(tokenizer, text[middle:]))]


def verdict_dict(verdict: Verdict) -> dict[str, Any]:
    """A verdict as JSON."""
    from dataclasses import asdict

    return {
        "task": verdict.task,
        "edits": [[one.lname, one.lnum, one.rho] for one in verdict.edits],
        "before": {"accuracy": verdict.before.accuracy, "log_loss": verdict.before.log_loss},
        "after": {"accuracy": verdict.after.accuracy, "log_loss": verdict.after.log_loss},
        "comparison": asdict(verdict.comparison) if verdict.comparison else None,
    }


def run(args: argparse.Namespace) -> int:
    """Search, write and print; the test questions only for the picks."""
    from laser_kernels.laser import greedy, judge, search, summary, verdict_text
    from laser_kernels.laser.search import RHOS
    from laser_kernels.laser.tables import write_all
    from laser_kernels.progress import automatic

    model, tokenizer = load(args.model, args.dtype, args.device)
    tasks = tasks_of(args, tokenizer)
    rhos = args.rhos or list(RHOS)
    options: dict[str, Any] = {
        "matrices": [word for word in args.matrices.split(",") if word],
        "layers": args.layers,
        **{"rhos": rhos, "tol": args.tol, "seed": args.seed, "resume": args.resume},
    }
    searches = [[task] for task in tasks] if args.greedy else [tasks]
    verdicts = []
    for number, group in enumerate(searches):
        folder = args.out / str(number) if len(searches) > 1 else args.out
        options |= {"journal": folder / TRIALS, "progress": automatic(unit="evaluations")}
        findings = greedy(model, group[0], **options) if args.greedy else search(model, group, **options)
        write_all(findings, folder, [task.name for task in group])
        for task in group:
            print(summary(findings, task.name), flush=True)
            best = findings.best(task.name)
            if best is None:
                print("  nothing tried is better than the unchanged model\n")
                continue
            verdict = judge(model, task, best.edits, rhos=rhos, tol=args.tol, seed=args.seed)
            print(verdict_text(verdict) + "\n", flush=True)
            verdicts.append(verdict_dict(verdict))
    (args.out / "verdicts.json").write_text(json.dumps(verdicts, indent=1) + "\n", "utf-8")
    print(f"trials, CSV and heat maps: {args.out}", file=sys.stderr)
    return 0
