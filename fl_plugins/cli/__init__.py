"""The command ``fl-plugins``.

Each subcommand is a module with ``add_parser(subparsers)``; its parsers set ``run``, a callable that takes
the parsed arguments and returns the exit status. What is slow to import is imported when it runs.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from fl_plugins import __version__
from fl_plugins.errors import FLPluginsError

_COMMANDS = (
    "fl_plugins.cli.list_show",
    "fl_plugins.cli.doctor",
    "fl_plugins.cli.simulate",
    "fl_plugins.cli.compare",
    "fl_plugins.cli.deploy",
    "fl_plugins.cli.privacy",
    "fl_plugins.cli.secagg",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    =====  ===========================================================
    0      done
    1      the subcommand found something wrong, or its run failed
    2      the command line, or something that it names, is wrong
    130    interrupted
    =====  ===========================================================
    """
    parser = argparse.ArgumentParser(prog="fl-plugins", description="Plugins for Flower, and runs with them.")
    parser.add_argument("--version", action="version", version=f"fl-plugins {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="command", required=True)
    for command in _COMMANDS:
        import_module(command).add_parser(subparsers)
    arguments = parser.parse_args(argv)
    try:
        status: int = arguments.run(arguments)
        sys.stdout.flush()
    except FLPluginsError as error:
        print(f"fl-plugins: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        place = "" if error.filename is None else f"{error.filename}: "
        reason = error.strerror or f"{type(error).__name__}: {error}"
        print(f"fl-plugins: {place}{' '.join(reason.split())}; check paths and permissions.", file=sys.stderr)
        return 2
    return status
