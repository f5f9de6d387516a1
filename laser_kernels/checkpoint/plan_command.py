"""`laser-kernels plan SRC`: what reduce would do, tensor by tensor, and how long it should take."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from typing import TYPE_CHECKING, Any

from laser_kernels import arguments, console

if TYPE_CHECKING:
    from laser_kernels.checkpoint.work import Work

HELP = "print what reduce would do; reads headers, and weights for rank rules that need them"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SRC", help="folder of a safetensors checkpoint")
    arguments.add_rules(parser)
    arguments.add_output(parser)


def plan_rows(work: Work, tol: float, device: str) -> list[dict[str, Any]]:
    """One row per tensor to reduce: what would run and how long it should take."""
    import torch

    from laser_kernels import dispatch, ops
    from laser_kernels.checkpoint.pipeline import torch_dtype

    seconds: dict[str, float] = {}
    routes: dict[str, str] = {}
    for group in work.groups:
        problem = dispatch.Problem(
            rows=group.rows,
            cols=group.cols,
            rank=max(group.ranks),
            dtype=str(torch_dtype(group.stored_dtype)).removeprefix("torch."),
            tol=tol,
            device=device.partition(":")[0],
            capability=ops.capability(torch.device(device)),
        )
        shared = dispatch.share_ranks(problem, Counter(group.ranks), dispatch.choose)
        batch = Counter(shared[rank] for rank in group.ranks)
        for matrix in group.matrices:
            top = shared[matrix.rank]
            route = dispatch.choose(problem._replace(rank=top, batch=batch[top]))
            seconds[matrix.name] = seconds.get(matrix.name, 0.0) + route.seconds / batch[top]
            routes[matrix.name] = route.name
    return [
        {
            "name": target.name,
            "shape": list(target.shape),
            "dtype": target.dtype,
            "rank": target.rank,
            "route": routes[target.name],
            "seconds": seconds[target.name],
        }
        for target in work.selection.targets
    ]


def _cells(row: dict[str, Any]) -> list[str]:
    """A row of plan_rows as text."""
    shape, seconds = "x".join(map(str, row["shape"])), f"{row['seconds']:.3g}"
    return [row["name"], shape, row["dtype"], str(row["rank"]), row["route"], seconds]


def run(args: argparse.Namespace) -> int:
    from laser_kernels.checkpoint.reader import Reader
    from laser_kernels.checkpoint.work import prepare
    from laser_kernels.devices import resolve_devices, workers

    plan = arguments.plan_of(args)
    with Reader(args.source) as reader:
        devices = resolve_devices(args.device)
        device, count = devices[0], len(workers(devices))
        work = prepare(reader, plan, args.memory_budget, args.output, device=device, workers=count, progress=None)
        rows = plan_rows(work, args.tol, device)
        tensors, source_bytes = len(reader.tensors), reader.nbytes
    total = sum(row["seconds"] for row in rows)
    reduced = sum(len(group.matrices) * group.written_bytes for group in work.groups)
    parameters = [work.source_parameters, work.output_parameters]
    if args.json:
        result = {
            "tensors": rows,
            "plan": plan.as_dict(),
            "architecture": work.selection.architecture,
            "seconds": total,
            "source_bytes": source_bytes,
            "output_bytes": work.output_bytes,
            "reduced_bytes": reduced,
            "parameters": parameters,
            "fp8_to_bf16": len(work.fp8),
            "notes": list(work.notes),
        }
        print(json.dumps(result, indent=1))
        return 0
    print(console.table([["tensor", "shape", "dtype", "rank", "route", "seconds"], *map(_cells, rows)]))
    print(
        f"\n{len(rows)} of {tensors} tensors, {console.size(reduced)} of {console.size(work.output_bytes)}, "
        f"about {total:.3g} s"
    )
    print(f"source {console.size(source_bytes)}, output {console.size(work.output_bytes)}", end="")
    print(f" ({len(work.fp8)} fp8 weights become bf16)" if work.fp8 else "")
    if work.factored:
        print("parameters {:,}, output {:,}; {} tensors become factors".format(*parameters, len(work.factored)))
    for note in work.notes:
        print(f"note: {note}")
    return 0
