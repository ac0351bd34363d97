"""``fl-plugins compare``: the same run with several strategies, and the table of how they ended."""

import argparse
import time
from typing import Any

from fl_plugins.errors import ConfigError, SpecError

from ._run_options import add_run_options, overrides


def add_parser(subparsers: Any) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "compare",
        help="run several strategies on the same federation and compare them",
        description="Run several strategies, one after the other, in one SuperLink, with everything else "
        "equal, and print a table. The exit status is 0 only if none failed; to diverge is a result.",
    )
    parser.add_argument(
        "--strategies",
        required=True,
        metavar="SPECS",
        help='specs with semicolons between them: "fedavg; krum(num_byzantine=2)"',
    )
    add_run_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run; return 0 if no run failed, 1 if one did, 130 if interrupted.

    A run that diverged is a result (plain averaging under attack, for one), not a failure.
    """
    from rich.console import Console

    from fl_plugins.runlog.table import comparison_table, comparison_text
    from fl_plugins.simulation.run_directory import check_name, slug

    from ._runs import execute, plan_run

    specs = split_specs(args.strategies)
    given = overrides(args)
    if "strategy" in given:
        raise ConfigError("compare: strategy is given in --run-config; name the strategies in --strategies.")
    folder = args.runs_dir / check_name(args.name or f"compare-{time.strftime('%Y%m%d-%H%M%S')}")
    plans = [
        plan_run(args, {**given, "strategy": spec}, folder / f"{number:02d}-{slug(spec)}")
        for number, spec in enumerate(specs, start=1)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        summaries = execute(plans, folder)
    except KeyboardInterrupt:
        print(f"\ninterrupted; what was done is in {folder}")
        return 130
    console = Console(highlight=False)
    print()
    if console.is_terminal:
        console.print(comparison_table(summaries))
    else:
        print(comparison_text(summaries))
    print(f"\nkept in {folder}")
    return int(any(summary.outcome in ("failed", "unfinished") for summary in summaries))


def split_specs(text: str) -> list[str]:
    """Split at semicolons that are in no brackets and no quotes; empty parts are left out.

    >>> split_specs("fedavg; krum(num_byzantine=2); odd(name='a;b');")
    ['fedavg', 'krum(num_byzantine=2)', "odd(name='a;b')"]

    Raises
    ------
    SpecError
        If nothing is left.
    """
    parts, depth, quote, start = [], 0, "", 0
    position = 0
    while position < len(text):
        character = text[position]
        if quote:
            position += character == "\\"
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character in "([":
            depth += 1
        elif character in ")]":
            depth -= 1
        elif character == ";" and depth <= 0:
            parts.append(text[start:position])
            start = position + 1
        position += 1
    specs = [part.strip() for part in [*parts, text[start:]] if part.strip()]
    if not specs:
        raise SpecError(f"--strategies {text!r} names none; write specs with semicolons between them.")
    return specs
