"""`laser-kernels resize IN OUT --rank`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

from laser_kernels.split import SPLITS


def add_arguments(parser: argparse.ArgumentParser, rank: Callable[[str], Any]) -> None:
    parser.add_argument("source", metavar="IN", help="PEFT folder, or .safetensors file of kohya's or diffusers' kind")
    parser.add_argument("out", metavar="OUT", help="folder or file to make")
    parser.add_argument(
        "--rank", type=rank, required=True, help="a count (16) or a fraction of each module's rank (0.5)"
    )
    parser.add_argument("--conv-rank", type=rank, help="the same for convolutions (as --rank)")
    parser.add_argument("--split", choices=SPLITS, default="sqrt", help="which factor gets the singular values (sqrt)")
    parser.add_argument("--json", action="store_true", help="print the report, module by module")


def run(args: argparse.Namespace) -> int:
    from laser_kernels.lora.resize import resize_lora

    report = resize_lora(args.source, args.out, args.rank, conv_rank=args.conv_rank, split=args.split)
    for note in report.notes:
        print(f"laser-kernels: note: {note}", file=sys.stderr)
    print(report.to_json() if args.json else f"{args.out}: {report.summary()}")
    return 0
