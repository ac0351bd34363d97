"""``fl-plugins secagg``: the files that nodes need for secure aggregation, and that no server may make."""

import argparse
from pathlib import Path
from typing import Any

from fl_plugins.errors import ConfigError


def add_parser(subparsers: Any) -> None:
    """Add the subcommand and its own subcommands."""
    parser = subparsers.add_parser(
        "secagg",
        help="make node identities, rosters and keys for secure aggregation",
        description="For tier='malicious': every node makes an identity; the operators exchange the public "
        "keys by a way that the server has no hand in, and put the same roster on every node "
        "(additive_aggregation: clients have the helpers', helpers the clients'). For ckks_aggregation: one "
        "key for all clients.",
    )
    commands = parser.add_subparsers(title="secagg commands", metavar="command", required=True)
    identity = commands.add_parser("identity", help="make this node's identity in a folder")
    identity.add_argument("folder", type=Path, help="where the private and the public key go")
    identity.set_defaults(run=_identity)
    key = commands.add_parser("key", help="make the clients' secret key for ckks_aggregation")
    key.add_argument(
        "file", type=Path, help="the file to write; every client needs it, no server may have it"
    )
    key.set_defaults(run=_key)
    roster = commands.add_parser("roster", help="write a roster from the nodes' public keys")
    roster.add_argument("file", type=Path, help="the roster to write, for example roster.toml")
    roster.add_argument(
        "keys", nargs="+", metavar="NAME=FILE", help="a node's name and its public key, one for every node"
    )
    roster.add_argument(
        "--helpers", action="store_true", help="a roster of additive_aggregation's helpers, for their clients"
    )
    roster.set_defaults(run=_roster)


def _identity(args: argparse.Namespace) -> int:
    """Make an identity; return 0."""
    from fl_plugins.secure_identities import PRIVATE_KEY, PUBLIC_KEY, make_identity

    public = make_identity(args.folder)
    print(f"{args.folder / PRIVATE_KEY} stays on this node: --node-config 'secagg-identity=\"...\"'")
    print(f"{args.folder / PUBLIC_KEY} goes to the other operators: {public.hex()}")
    return 0


def _key(args: argparse.Namespace) -> int:
    """Make a key; return 0."""
    from fl_plugins.ckks_round import write_key

    key = write_key(args.file)
    print(f"{args.file} goes to every client, and to nobody else: --node-config 'secagg-sum-key=\"...\"'")
    print(f'ckks_aggregation(…, key="{key.fingerprint}") refuses clients with another key')
    return 0


def _roster(args: argparse.Namespace) -> int:
    """Write a roster; return 0."""
    from fl_plugins.secure_identities import read_public_key, read_roster, write_roster

    identities: dict[str, bytes] = {}
    for item in args.keys:
        name, equals, file = item.partition("=")
        if not equals or name in identities:
            raise ConfigError(f"secagg roster: {item!r}, but each node is NAME=FILE, once.")
        identities[name] = read_public_key(name, Path(file))
    least, key = (1, "secagg-helpers") if args.helpers else (2, "secagg-roster")
    write_roster(args.file, identities, at_least=least)
    listed = len(read_roster(args.file, at_least=least))
    print(f"{args.file} lists {listed} nodes: --node-config '{key}=\"...\"'")
    return 0
