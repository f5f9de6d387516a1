"""`laser-kernels COMMAND`: arguments in, exit code out. 0 fine, 1 verify found differences or bench a wrong answer, 2 an
error, 130 interrupted."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from laser_kernels import reduce_command
from laser_kernels.bench import command as bench_command
from laser_kernels.laser import command as search_command
from laser_kernels.lora import extract_command, resize_command
from laser_kernels.scan import command as scan_command

if TYPE_CHECKING:
    from laser_kernels.rank import Rule
    from laser_kernels.selection import Plan
    from laser_kernels.work import Work

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


def _rank(text: str) -> int | float | Rule:
    from laser_kernels.ranks import from_text

    try:
        return from_text(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("[laser_kernels] ")) from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="laser-kernels",
        description="Replace weight matrices of a checkpoint by low-rank approximations.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    rules = argparse.ArgumentParser(add_help=False)
    what = rules.add_argument_group("what to reduce")
    what.add_argument(
        "--targets",
        help="q_proj k_proj v_proj out_proj fc_in fc_up fc_out attn mlp all, or re:REGEX, searched for in the name; "
        "several with commas",
    )
    what.add_argument("--layers", help="27, 20-29, a comma list of those, or all (default); layers count from 0")
    what.add_argument("--rank", type=_rank, help="a count (64), a fraction (0.1) or a rule (energy:0.9)")
    what.add_argument(
        "--plan",
        metavar="YAML",
        help="rules: [{targets: [fc_in], layers: 20-29, rank: 0.1}]; first match wins",
    )
    rules.add_argument("--tol", type=float, default=1e-3, help="accepted excess over the optimal residual (1e-3)")
    rules.add_argument("--device", default="auto", help="cpu, cuda, cuda:N, cuda:0,cuda:1,... or auto (default)")
    rules.add_argument(
        "--memory-budget",
        type=parse_bytes,
        metavar="SIZE",
        help="for weights and workspace, as 1GiB",
    )
    rules.add_argument("--json", action="store_true", help="print the result as JSON")

    plan = commands.add_parser(
        "plan",
        parents=[rules],
        help="print what reduce would do; reads headers, and weights for rank rules that need them",
    )
    plan.add_argument("source", metavar="SRC", help="folder of a safetensors checkpoint")
    reduce_command.add_output(plan)
    reduce = commands.add_parser("reduce", parents=[rules], help="write a reduced copy of a checkpoint")
    reduce_command.add_arguments(reduce)
    verify = commands.add_parser("verify", help="compare a reduced copy with its source and its report")
    verify.add_argument("source", metavar="SRC")
    verify.add_argument("destination", metavar="DST")
    verify.add_argument("--json", action="store_true", help="print the result as JSON")
    bench = commands.add_parser(
        "bench", help="time truncated SVDs against other libraries, the error beside every time"
    )
    bench_command.add_arguments(bench, _rank)
    extract = commands.add_parser("extract", help="write what fine-tuning changed in a checkpoint as a LoRA adapter")
    extract_command.add_arguments(extract, _rank)
    resize = commands.add_parser("resize", help="write a LoRA of another rank")
    resize_command.add_arguments(resize, _rank)
    scan = commands.add_parser("scan", help="spectra of a checkpoint: SNR, ranks, conditioning")
    scan_command.add_arguments(scan)
    search = commands.add_parser("search", help="find the intervention that makes a language model better at a task")
    search_command.add_arguments(search)
    return parser


def _plan_of(args: argparse.Namespace) -> Plan:
    from laser_kernels.selection import Plan, Rule, parse_layers, parse_rank, parse_targets

    if args.plan is not None:
        if args.targets or args.layers or args.rank is not None:
            raise ValueError("--plan stands in place of --targets, --layers and --rank: give one or the other")
        return Plan.from_yaml(args.plan)
    if args.targets is None or args.rank is None:
        raise ValueError("say what to reduce: --targets and --rank, or --plan")
    rule = Rule(
        parse_targets(args.targets, "--targets"),
        parse_rank(args.rank, "--rank"),
        parse_layers(args.layers, "--layers"),
    )
    return Plan((rule,))


def _size(nbytes: int) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if nbytes >= size:
            return f"{nbytes / size:.1f} {unit}"
    return f"{nbytes} B"


def plan_rows(work: Work, tol: float, device: str) -> list[dict[str, Any]]:
    """One row per tensor to reduce: what would run and how long it should take."""
    import torch

    from laser_kernels import dispatch, ops
    from laser_kernels.pipeline import torch_dtype

    seconds: dict[str, float] = {}
    routes: dict[str, str] = {}
    for group in work.groups:
        problem = dispatch.Problem(
            rows=group.rows,
            cols=group.cols,
            rank=group.rank,
            dtype=str(torch_dtype(group.stored_dtype)).removeprefix("torch."),
            tol=tol,
            device=device.partition(":")[0],
            batch=len(group.matrices),
            capability=ops.capability(torch.device(device)),
        )
        route = dispatch.choose(problem)
        for matrix in group.matrices:
            seconds[matrix.name] = seconds.get(matrix.name, 0.0) + route.seconds / len(group.matrices)
            routes[matrix.name] = route.name
    return [
        {
            **{
                "name": target.name,
                "shape": list(target.shape),
                "dtype": target.dtype,
                "rank": target.rank,
            },
            **{"route": routes[target.name], "seconds": seconds[target.name]},
        }
        for target in work.selection.targets
    ]


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _run_plan(args: argparse.Namespace) -> int:
    from laser_kernels.checkpoint import Reader
    from laser_kernels.devices import resolve_devices
    from laser_kernels.work import prepare

    plan = _plan_of(args)
    with Reader(args.source) as reader:
        device = resolve_devices(args.device)[0]
        work = prepare(reader, plan, args.memory_budget, args.output, device=device, progress=None)
        rows = plan_rows(work, args.tol, device)
        total = sum(row["seconds"] for row in rows)
        source_bytes = reader.nbytes
    chosen = sum(len(group.matrices) * group.written_bytes for group in work.groups)
    parameters = [work.source_parameters, work.output_parameters]
    if args.json:
        result = {
            **{
                "tensors": rows,
                "plan": plan.as_dict(),
                "architecture": work.selection.architecture,
            },
            **{"seconds": total, "source_bytes": source_bytes, "output_bytes": work.output_bytes},
            **{
                "reduced_bytes": chosen,
                "parameters": parameters,
                "fp8_to_bf16": len(work.fp8),
                "notes": list(work.notes),
            },
        }
        print(json.dumps(result, indent=1))
        return 0
    head = ["tensor", "shape", "dtype", "rank", "route", "seconds"]
    body = [
        [
            row["name"],
            "x".join(map(str, row["shape"])),
            row["dtype"],
            str(row["rank"]),
            row["route"],
            f"{row['seconds']:.3g}",
        ]
        for row in rows
    ]
    print(_table([head, *body]))
    print(
        f"\n{len(rows)} of {len(reader.tensors)} tensors, {_size(chosen)} of {_size(work.output_bytes)}, "
        f"about {total:.3g} s"
    )
    print(f"source {_size(source_bytes)}, output {_size(work.output_bytes)}", end="")
    print(f" ({len(work.fp8)} fp8 weights become bf16)" if work.fp8 else "")
    if work.factored:
        print("parameters {:,}, output {:,}; {} tensors become factors".format(*parameters, len(work.factored)))
    for note in work.notes:
        print(f"note: {note}")
    return 0


def _run_reduce(args: argparse.Namespace) -> int:
    return reduce_command.run(args, _plan_of(args))


def _run_verify(args: argparse.Namespace) -> int:
    from laser_kernels.verification import verify

    result = verify(args.source, args.destination)
    if args.json:
        print(json.dumps(result.to_dict(), indent=1))
    else:
        for difference in result.differences:
            print(difference)
        verdict = "as reported" if result.ok else f"{len(result.differences)} differences"
        print(f"{args.destination}: {verdict}; {result.reduced} reduced matrices, {result.untouched} untouched tensors")
    return 0 if result.ok else 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; expected errors are one line on stderr, never a traceback."""
    try:
        args = _parser().parse_args(argv)
    except SystemExit as leave:  # argparse has said why
        return leave.code if isinstance(leave.code, int) else 2
    run = {
        **{"plan": _run_plan, "reduce": _run_reduce, "verify": _run_verify},
        **{"bench": bench_command.run, "extract": extract_command.run, "resize": resize_command.run},
        **{"scan": scan_command.run, "search": search_command.run},
    }
    try:
        return run[args.command](args)
    except KeyboardInterrupt:
        print("laser-kernels: interrupted: add --resume to the same command to go on", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of stdout has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, TypeError, OSError, MemoryError, ImportError) as error:
        text = str(error).removeprefix("[laser_kernels] ") or type(error).__name__
        print(f"laser-kernels: error: {text}", file=sys.stderr)
        return 2
