"""``fl-plugins deploy``: make a deployment with TLS and node authentication, and drive it on one machine."""

import argparse
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from fl_plugins.errors import ConfigError, RunFailedError

from ._run_options import add_app_options, overrides
from ._text import print_table

LOG_LINES = 40


def add_parser(subparsers: Any) -> None:
    """Add the subcommand and its own subcommands."""
    parser = subparsers.add_parser(
        "deploy",
        help="make a deployment with TLS and node authentication, and try it out",
        description="Make the certificates, keys and files of a deployment on real machines. `init` writes "
        "folders to copy to the machines; up, run, status, logs and down drive all of it on this one.",
    )
    commands = parser.add_subparsers(title="deploy commands", metavar="command", required=True)
    _add_init(commands)
    for name, function, text in (
        ("up", _up, "start the SuperLink and all SuperNodes here, and wait until they are connected"),
        ("status", _status, "show what runs here and what the SuperLink says; 0 if everything is up"),
        ("register", _register, "let the nodes' keys in at the SuperLink, without starting nodes"),
        ("down", _down, "end everything that `up` started"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("folder", type=Path, help="the deployment's folder")
        command.set_defaults(run=function)
    logs = commands.add_parser("logs", help="show the end of a role's log")
    logs.add_argument("folder", type=Path, help="the deployment's folder")
    logs.add_argument("role", help="server, or the number of a node")
    logs.add_argument("--lines", type=int, default=LOG_LINES, metavar="N", help=f"default: {LOG_LINES}")
    logs.set_defaults(run=_logs)
    run = commands.add_parser("run", help="run the ready-made app in a deployment that is up, and watch it")
    run.add_argument("folder", type=Path, help="the deployment's folder")
    run.add_argument("--strategy", metavar="SPEC", help='how replies are aggregated: "krum(num_byzantine=2)"')
    add_app_options(run)
    run.add_argument("--name", help="the run's folder inside <folder>/runs (default: the time)")
    run.add_argument("--resume", action="store_true", help="continue the run of that --name")
    run.set_defaults(run=_run)


def _add_init(commands: Any) -> None:
    """Add ``init``."""
    from fl_plugins.deployment.certificates import SERVER_DAYS
    from fl_plugins.deployment.layout import RUNTIME_PORT, SUPERLINK_PORT

    init = commands.add_parser(
        "init",
        help="write certificates, keys, start scripts, systemd units and compose files",
        description="Write a deployment into a new folder: authority/ stays here, server/ goes to the "
        "SuperLink's machine, nodes/<i>/ to node i's, operator/ to whoever starts runs.",
    )
    init.add_argument("folder", type=Path, help="a folder that does not exist yet")
    init.add_argument("--nodes", type=int, required=True, metavar="N", help="number of SuperNodes")
    init.add_argument(
        "--host", required=True, help="IP address or DNS name under which nodes reach the SuperLink"
    )
    init.add_argument("--port", type=int, default=SUPERLINK_PORT, help=f"default: {SUPERLINK_PORT}")
    init.add_argument(
        "--runtime-port",
        type=int,
        default=RUNTIME_PORT,
        metavar="PORT",
        help=f"port that node 0 uses on its own loopback, node i the i-th after it (default: {RUNTIME_PORT})",
    )
    init.add_argument(
        "--task", default="heart_disease", metavar="SPEC", help="what `deploy run` trains by default"
    )
    init.add_argument(
        "--days",
        type=int,
        default=SERVER_DAYS,
        help=f"days for which the server's certificate is valid (default: {SERVER_DAYS})",
    )
    init.set_defaults(run=_init)


def _init(args: argparse.Namespace) -> int:
    """Write a deployment; return 0."""
    from fl_plugins.deployment.create import create
    from fl_plugins.deployment.layout import Settings

    settings = Settings(
        host=args.host,
        port=args.port,
        num_nodes=args.nodes,
        runtime_port=args.runtime_port,
        task=args.task,
        days=args.days,
    )
    layout = create(args.folder, settings)
    print(f"authority/     keep it here; its key makes certificates ({layout.authority})")
    print(f"server/        to the SuperLink's machine, {settings.address}")
    print(f"nodes/0 … {settings.num_nodes - 1}   one folder to each node's machine, and to no other")
    print("operator/      to whoever starts runs: FLWR_HOME=… flwr run . deployment")
    print(f"\nall of it on this machine: fl-plugins deploy up {shlex.quote(str(args.folder))}")
    return 0


def _up(args: argparse.Namespace) -> int:
    """Bring everything up; return 0, or 1 if something does not start (then all is ended again)."""
    from fl_plugins.deployment import drive
    from fl_plugins.deployment.layout import Layout

    layout = Layout.open(args.folder)
    try:
        drive.up(layout, note=print)
    except RunFailedError as error:
        print(f"fl-plugins: {error}", file=sys.stderr)
        drive.down(layout)
        return 1
    except BaseException:
        drive.down(layout)
        raise
    return 0


def _status(args: argparse.Namespace) -> int:
    """Show one line per role; return 0 if all run and all nodes are online, else 1."""
    from fl_plugins.deployment import drive
    from fl_plugins.deployment.layout import Layout

    lines = drive.status(Layout.open(args.folder))
    rows = [
        (line.role.name, f"pid {line.pid}" if line.running else "not running", line.flower or "–")
        for line in lines
    ]
    print_table(("role", "process", "SuperLink"), rows)
    return int(any(line.flower not in ("online", "answers") or not line.running for line in lines))


def _register(args: argparse.Namespace) -> int:
    """Register keys; return 0."""
    from fl_plugins.deployment import drive
    from fl_plugins.deployment.layout import Layout

    layout = Layout.open(args.folder)
    added = drive.register(layout)
    print(f"{len(added)} node keys registered, {layout.settings.num_nodes - len(added)} known already")
    return 0


def _down(args: argparse.Namespace) -> int:
    """End everything; return 0."""
    from fl_plugins.deployment import drive
    from fl_plugins.deployment.layout import Layout

    ended = drive.down(Layout.open(args.folder))
    print(f"ended: {', '.join(role.name for role in ended) or 'nothing ran'}")
    return 0


def _logs(args: argparse.Namespace) -> int:
    """Show the end of a log; return 0."""
    from fl_plugins.deployment.layout import Layout
    from fl_plugins.simulation.superlink import log_tail

    if args.lines < 1:
        raise ConfigError(f"deploy: --lines {args.lines}, but it must be >= 1.")
    print(log_tail(Layout.open(args.folder).role(args.role).log, lines=args.lines))
    return 0


def _run(args: argparse.Namespace) -> int:
    """Run; return 0 if the run finished, 1 if it failed."""
    from rich.console import Console

    from fl_plugins.apps.config import RunConfig
    from fl_plugins.deployment import processes
    from fl_plugins.deployment.layout import Layout
    from fl_plugins.deployment.run import run_in
    from fl_plugins.runlog.progress import ProgressDisplay
    from fl_plugins.simulation.run_directory import check_name

    from ._preflight import check_run
    from ._run_options import check_keys

    given = overrides(args)
    if args.resume and args.name is None:
        raise ConfigError("deploy: --resume needs --name: which run to continue.")
    layout = Layout.open(args.folder)
    if not processes.is_running(layout.server):
        raise ConfigError(
            "deploy: no SuperLink runs here; start it with "
            f"`fl-plugins deploy up {shlex.quote(str(args.folder))}`."
        )
    check_keys(given, RunConfig.defaults(), where="the ready-made app")
    check_run(
        {**RunConfig.defaults(), "task": layout.settings.task, **given},
        num_supernodes=layout.settings.num_nodes,
    )
    name = check_name(args.name or time.strftime("%Y%m%d-%H%M%S"))
    with ProgressDisplay(Console(highlight=False)) as display:
        try:
            run_in(layout, given, name=name, resume=args.resume, show=display.show)
        except RunFailedError as error:
            print(f"fl-plugins: the run {name} failed: {error}", file=sys.stderr)
            return 1
    print(f"kept in {layout.runs / name}")
    return 0
