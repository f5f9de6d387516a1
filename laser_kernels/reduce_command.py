"""`laser-kernels reduce`: its arguments, and which of the three outputs is written."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from laser_kernels.selection import Plan


def add_output(parser: argparse.ArgumentParser, *more: str) -> None:
    """The option that says what reduced weights are written as."""
    parser.add_argument(
        "--output",
        choices=["dense", "factored", *more],
        default="dense",
        help="dense (default): in the weight's place, for every loader; factored: smaller, for laser_kernels.load_factored"
        + ("; lora: a PEFT adapter" if more else ""),
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `reduce` takes beside the rules."""
    parser.add_argument("source", metavar="SRC", help="folder of a safetensors checkpoint")
    parser.add_argument("destination", metavar="DST", help="folder to make")
    add_output(parser, "lora")
    parser.add_argument(
        "--lora",
        choices=["difference", "factors"],
        help="with --output lora: the adapter is W_r - W, for the same model (default), or W_r itself, for a zero base",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the random sketches (0)")
    parser.add_argument("--resume", action="store_true", help="finish what an interrupted run left in DST")
    parser.add_argument(
        "--on-nonfinite",
        choices=["error", "keep"],
        default="error",
        help="what to do with a weight that holds NaN or Inf",
    )


def run(args: argparse.Namespace, plan: Plan) -> int:
    """Write the output and say what was done."""
    from laser_kernels.lora.output import reduce_to_lora
    from laser_kernels.reduce import reduce_checkpoint

    if args.output == "lora":
        if args.resume or args.memory_budget is not None or args.on_nonfinite != "error":
            raise ValueError(
                "--output lora knows neither --resume nor --memory-budget nor --on-nonfinite: leave them out"
            )
        report = reduce_to_lora(
            args.source,
            args.destination,
            plan,
            kind=args.lora or "difference",
            tol=args.tol,
            seed=args.seed,
            device=args.device,
        )
    elif args.lora is not None:
        raise ValueError("--lora says what an adapter holds: add --output lora")
    else:
        report = reduce_checkpoint(
            args.source,
            args.destination,
            plan,
            tol=args.tol,
            seed=args.seed,
            device=args.device,
            memory_budget=args.memory_budget,
            resume=args.resume,
            on_nonfinite=args.on_nonfinite,
            output=args.output,
        )
    for note in report.notes:
        print(f"laser-kernels: note: {note}", file=sys.stderr)
    print(
        report.to_json() if args.json else f"{args.destination}: {report.summary()}",
        end="" if args.json else "\n",
    )
    return 0
