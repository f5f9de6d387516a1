"""`laser-kernels reduce`: its arguments, and which of the three outputs is written."""

from __future__ import annotations

import argparse

from laser_kernels import arguments, console

HELP = "write a reduced copy of a checkpoint"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SRC", help="folder of a safetensors checkpoint")
    parser.add_argument("destination", metavar="DST", help="folder to make")
    arguments.add_rules(parser)
    arguments.add_output(parser, "lora")
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


def run(args: argparse.Namespace) -> int:
    from laser_kernels.checkpoint.reduce import reduce_checkpoint
    from laser_kernels.lora.output import reduce_to_lora

    plan = arguments.plan_of(args)
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
    console.show(report, args.destination, args.json)
    return 0
