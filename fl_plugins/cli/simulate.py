"""``fl-plugins simulate``: one run in a SuperLink of its own, followed and judged."""

import argparse
import time
from pathlib import Path
from typing import Any

from fl_plugins.errors import ConfigError

from ._run_options import Value, add_run_options, overrides


def add_parser(subparsers: Any) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "simulate",
        help="run a federation on this machine and watch it",
        description="Run a federation on this machine, in a SuperLink of its own that ends with "
        "it. The exit status is 0 only if the run finished; runs/<name>/ keeps its events, checkpoints and "
        "model.",
    )
    parser.add_argument(
        "--strategy", metavar="SPEC", help='how replies are aggregated: "krum(num_byzantine=2)"'
    )
    add_run_options(parser)
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue the run of that --name after its newest checkpoint, with the options that it had",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run; return 0 if the run finished, 1 if it failed, 130 if it was interrupted."""
    from fl_plugins.simulation.run_directory import check_name, slug

    from ._runs import execute, plan_run

    given = overrides(args)
    if args.resume and args.name is None:
        raise ConfigError("simulate: --resume needs --name: which run to continue.")
    name = args.name or f"{slug(str(given.get('strategy', 'run')))}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder = args.runs_dir / check_name(name)
    if args.resume:
        given = _recall(args, given, folder)
    plan = plan_run(args, given, folder, resume=args.resume)
    try:
        [summary] = execute([plan], folder)
    except KeyboardInterrupt:
        again = f"fl-plugins simulate --runs-dir {args.runs_dir} --name {name} --resume"
        print(f"\ninterrupted; continue with: {again}")
        return 130
    print(f"kept in {folder}")
    return 0 if summary.outcome in ("finished", "stopped early") else 1


def _recall(args: argparse.Namespace, given: dict[str, Value], folder: Path) -> dict[str, Value]:
    """Take up the options that the run had, where the command line gives no others; return its run config.

    Raises
    ------
    ConfigError
        If there is no such run, or the command line asks for another one.
    """
    from fl_plugins.simulation.run_directory import (
        IDENTITY_KEYS,
        check_folder,
        check_same_run,
        read_config,
    )

    from ._runs import READY_MADE

    check_folder(folder, resume=True)
    saved = read_config(folder)
    ran = saved.get("run", {})
    had = {**saved.get("run-config", {}), "num-supernodes": ran.get("num-supernodes", args.num_supernodes)}
    asked = given if args.num_supernodes is None else {**given, "num-supernodes": args.num_supernodes}
    check_same_run(folder, had, asked)
    if args.app is not None and ran.get("app") == READY_MADE:
        raise ConfigError(
            f"{folder}: cannot be resumed with --app, for it runs the ready-made app; leave it out."
        )
    for option in ("num_supernodes", "client_cpus", "client_gpus"):
        if getattr(args, option) is None:
            setattr(args, option, ran.get(option.replace("_", "-")))
    if args.app is None and ran.get("app", READY_MADE) != READY_MADE:
        args.app = Path(ran["app"])
    # A spec keeps the text that it had: an app of one's own may compare texts.
    kept = {key: value for key, value in had.items() if key in IDENTITY_KEYS and key != "num-supernodes"}
    return {**saved.get("run-config", {}), **given, **kept}
