"""`laser-kernels extract BASE TUNED OUT --rank`."""

from __future__ import annotations

import argparse

from laser_kernels import arguments, console
from laser_kernels.split import SPLITS

HELP = "write what fine-tuning changed in a checkpoint as a LoRA adapter"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("base", metavar="BASE", help="folder of the checkpoint that the fine-tuning began with")
    parser.add_argument("tuned", metavar="TUNED", help="folder of the fine-tuned checkpoint")
    parser.add_argument("out", metavar="OUT", help="PEFT folder to make")
    parser.add_argument(
        "--rank",
        type=arguments.parse_rank,
        required=True,
        help="a count (32), a fraction of the short side (0.05) or a rule (energy:0.9)",
    )
    parser.add_argument("--targets", default="all", help="as for reduce (all); several with commas")
    parser.add_argument("--layers", help="27, 20-29, a comma list of those, or all (default)")
    parser.add_argument("--split", choices=SPLITS, default="sqrt", help="which factor gets the singular values (sqrt)")
    parser.add_argument("--round-rank", type=int, metavar="N", help="round ranks up to a multiple of N")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32", help="of the factors")
    parser.add_argument("--tol", type=float, default=1e-3, help="accepted excess over the optimal residual (1e-3)")
    parser.add_argument("--seed", type=int, default=0, help="of the random sketches (0)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:N or auto (default)")
    parser.add_argument("--base-model", help="what the adapter calls its base (BASE)")
    parser.add_argument("--json", action="store_true", help="print the report, module by module")


def run(args: argparse.Namespace) -> int:
    from laser_kernels.lora.extract import DTYPES, extract_lora

    report = extract_lora(
        args.base,
        args.tuned,
        args.out,
        args.rank,
        targets=args.targets,
        layers=args.layers,
        split=args.split,
        round_rank=args.round_rank,
        dtype=DTYPES[args.dtype],
        tol=args.tol,
        seed=args.seed,
        device=args.device,
        base_model=args.base_model,
    )
    console.show(report, args.out, args.json)
    return 0
