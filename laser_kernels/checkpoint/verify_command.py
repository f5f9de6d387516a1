"""`laser-kernels verify SRC DST`. Exit code 1 where DST differs from its report."""

from __future__ import annotations

import argparse
import json

HELP = "compare a reduced copy with its source and its report"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SRC")
    parser.add_argument("destination", metavar="DST")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    from laser_kernels.checkpoint.verification import verify

    result = verify(args.source, args.destination)
    if args.json:
        print(json.dumps(result.to_dict(), indent=1))
    else:
        for difference in result.differences:
            print(difference)
        verdict = "as reported" if result.ok else f"{len(result.differences)} differences"
        print(f"{args.destination}: {verdict}; {result.reduced} reduced matrices, {result.untouched} untouched tensors")
    return 0 if result.ok else 1
