"""`laser-kernels resize IN OUT --rank`."""

from __future__ import annotations

import argparse

from laser_kernels import arguments, console
from laser_kernels.split import SPLITS

HELP = "write a LoRA of another rank"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="IN", help="PEFT folder, or .safetensors file of kohya's or diffusers' kind")
    parser.add_argument("out", metavar="OUT", help="folder or file to make")
    parser.add_argument(
        "--rank",
        type=arguments.parse_rank,
        required=True,
        help="a count (16), a fraction of each module's rank (0.5) or a rule (kohya:sv_fro,0.9)",
    )
    parser.add_argument("--conv-rank", type=arguments.parse_rank, help="the same for convolutions (as --rank)")
    parser.add_argument("--split", choices=SPLITS, default="sqrt", help="which factor gets the singular values (sqrt)")
    parser.add_argument("--json", action="store_true", help="print the report, module by module")


def run(args: argparse.Namespace) -> int:
    from laser_kernels.lora.resize import resize_lora

    report = resize_lora(args.source, args.out, args.rank, conv_rank=args.conv_rank, split=args.split)
    console.show(report, args.out, args.json)
    return 0
