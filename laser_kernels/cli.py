"""`laser-kernels COMMAND`: arguments in, exit code out. 0 fine, 1 verify found differences or bench a wrong answer, 2 an
error, 130 interrupted."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from laser_kernels.bench import command as bench_command
from laser_kernels.checkpoint import plan_command, reduce_command, verify_command
from laser_kernels.laser import command as search_command
from laser_kernels.lora import extract_command, resize_command
from laser_kernels.scan import command as scan_command
from laser_kernels.version import __version__

# Each has HELP, add_arguments(parser) and run(args) -> exit code.
COMMANDS = {
    "plan": plan_command,
    "reduce": reduce_command,
    "verify": verify_command,
    "bench": bench_command,
    "extract": extract_command,
    "resize": resize_command,
    "scan": scan_command,
    "search": search_command,
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="laser-kernels",
        description="Replace weight matrices of a checkpoint by low-rank approximations.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        command.add_arguments(commands.add_parser(name, help=command.HELP))
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; expected errors are one line on stderr, never a traceback."""
    try:
        args = _parser().parse_args(argv)
    except SystemExit as leave:  # argparse has said why
        return leave.code if isinstance(leave.code, int) else 2
    try:
        return COMMANDS[args.command].run(args)
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
