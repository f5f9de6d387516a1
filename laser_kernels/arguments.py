"""What several commands take: sizes, ranks, and the rules that say which weights are reduced."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from laser_kernels.rank import Rule
    from laser_kernels.selection import Plan

_UNITS = {
    "": 1,
    "K": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "KI": 2**10,
    "MI": 2**20,
    "GI": 2**30,
    "TI": 2**40,
}


def parse_bytes(text: str) -> int:
    """A number of bytes: 1GiB, 512MiB, 2GB, 1073741824."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]I?)?B?\s*", text.upper())
    if not match or (size := int(float(match[1]) * _UNITS[match[2] or ""])) < 1:
        raise argparse.ArgumentTypeError(f"must be a size like 1GiB, 512MiB or 2GB; got {text!r}")
    return size


def parse_rank(text: str) -> int | float | Rule:
    """A count (64), a fraction (0.1) or a rule by name (energy:0.9)."""
    from laser_kernels.ranks import from_text

    try:
        return from_text(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("[laser_kernels] ")) from None


def add_rules(parser: argparse.ArgumentParser) -> None:
    """The options of `plan` and `reduce` that say which weights, to what rank, how well and where."""
    what = parser.add_argument_group("what to reduce")
    what.add_argument(
        "--targets",
        help="q_proj k_proj v_proj out_proj fc_in fc_up fc_out attn mlp all, or re:REGEX, searched for in the name; "
        "several with commas",
    )
    what.add_argument("--layers", help="27, 20-29, a comma list of those, or all (default); layers count from 0")
    what.add_argument("--rank", type=parse_rank, help="a count (64), a fraction (0.1) or a rule (energy:0.9)")
    what.add_argument(
        "--plan",
        metavar="YAML",
        help="rules: [{targets: [fc_in], layers: 20-29, rank: 0.1}]; first match wins",
    )
    parser.add_argument("--tol", type=float, default=1e-3, help="accepted excess over the optimal residual (1e-3)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:N, cuda:0,cuda:1,... or auto (default)")
    parser.add_argument("--memory-budget", type=parse_bytes, metavar="SIZE", help="for weights and workspace, as 1GiB")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def add_output(parser: argparse.ArgumentParser, *more: str) -> None:
    """The option that says what reduced weights are written as."""
    parser.add_argument(
        "--output",
        choices=["dense", "factored", *more],
        default="dense",
        help="dense (default): in the weight's place, for every loader; factored: smaller, for laser_kernels.load_factored"
        + ("; lora: a PEFT adapter" if more else ""),
    )


def plan_of(args: argparse.Namespace) -> Plan:
    """The plan that the options of add_rules describe.

    Raises:
        ValueError: neither or both of --plan and --targets with --rank.
    """
    from laser_kernels import selection

    if args.plan is not None:
        if args.targets or args.layers or args.rank is not None:
            raise ValueError("--plan stands in place of --targets, --layers and --rank: give one or the other")
        return selection.Plan.from_yaml(args.plan)
    if args.targets is None or args.rank is None:
        raise ValueError("say what to reduce: --targets and --rank, or --plan")
    rule = selection.Rule(
        selection.parse_targets(args.targets, "--targets"),
        selection.parse_rank(args.rank, "--rank"),
        selection.parse_layers(args.layers, "--layers"),
    )
    return selection.Plan((rule,))
