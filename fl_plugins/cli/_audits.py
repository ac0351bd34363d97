"""``fl-plugins privacy audit | membership``: what an adversary shows beside what is accounted."""

import argparse
from typing import Any

from fl_plugins.errors import ConfigError

_NUM_RECORDS = 1000
_STATUS = "The exit status is 1 if more is shown than was accounted."


def add_audits(commands: Any) -> None:
    """Add the two subcommands."""
    audit = commands.add_parser(
        "audit",
        help="canaries through a private strategy or trainer: a lower bound on ε",
        description="Run canaries, each with a secret coin, through a private strategy or trainer in this "
        f"process, guess the coins, and print the ε that this shows beside the accounted one. {_STATUS}",
    )
    what = audit.add_mutually_exclusive_group(required=True)
    what.add_argument("--strategy", metavar="SPEC", help="dp_fedavg(…): canary clients, its whole population")
    what.add_argument("--client", metavar="SPEC", help="dp_supervised(…): canary records, one training")
    audit.add_argument("--num-rounds", type=int, metavar="N", help="rounds of the strategy (default 1)")
    audit.add_argument(
        "--dropouts",
        type=float,
        metavar="PART",
        help="part of the clients that fail every round (default 0.5)",
    )
    audit.add_argument(
        "--records", type=int, metavar="N", help=f"records of the trainer (default {_NUM_RECORDS})"
    )
    _add_common(audit)
    audit.set_defaults(run=run_audit)
    members = commands.add_parser(
        "membership",
        help="membership inference on a model trained on half of the records",
        description="Train a task in this process on a secret half of its records, tell members from others "
        f"by their losses, and print how well that works and what it shows of ε. {_STATUS}",
    )
    members.add_argument("--strategy", metavar="SPEC", default="fedavg", help="default: fedavg")
    members.add_argument("--client", metavar="SPEC", default="supervised", help="default: supervised")
    members.add_argument("--task", metavar="SPEC", default="digits", help="default: digits")
    members.add_argument("--num-clients", type=int, metavar="N", default=10, help="default: 10")
    members.add_argument("--num-rounds", type=int, metavar="N", default=5, help="default: 5")
    members.add_argument(
        "--shadow-models", type=int, metavar="N", default=1, help="runs of the adversary's own (default 1)"
    )
    members.add_argument("--seed", type=int, metavar="N", default=0)
    members.add_argument("--delta", type=float, default=1e-5, help="δ of the bounds (default 1e-5)")
    _add_common(members)
    members.set_defaults(run=run_membership)


def run_audit(args: argparse.Namespace) -> int:
    """Print what canaries show; return 1 if it is more than was accounted."""
    from fl_plugins.auditing import audit_strategy, audit_trainer, canary_task
    from fl_plugins.registry import Kind, load_modules
    from fl_plugins.spec import build

    load_modules(args.plugins)
    if args.strategy is not None:
        _refuse(args, "records", "--client")
        finding = audit_strategy(
            lambda: build(Kind.STRATEGY, args.strategy),
            num_rounds=1 if args.num_rounds is None else args.num_rounds,
            dropouts=0.5 if args.dropouts is None else args.dropouts,
            confidence=args.confidence,
        )
    else:
        for name in ("num-rounds", "dropouts"):
            _refuse(args, name, "--strategy")
        num_records = _NUM_RECORDS if args.records is None else args.records
        trainer = build(Kind.CLIENT, args.client, task=canary_task(num_records))
        finding = audit_trainer(trainer, num_records=num_records, confidence=args.confidence)
    print(finding)
    return int(finding.violated)


def run_membership(args: argparse.Namespace) -> int:
    """Print how well members are told from others; return 1 if that shows more than was accounted."""
    from fl_plugins.auditing import infer_membership
    from fl_plugins.registry import Kind, load_modules
    from fl_plugins.spec import build

    load_modules(args.plugins)
    task = build(Kind.TASK, args.task)
    found = infer_membership(
        lambda: build(Kind.STRATEGY, args.strategy),
        build(Kind.CLIENT, args.client, task=task),
        task,
        num_clients=args.num_clients,
        num_rounds=args.num_rounds,
        shadow_models=args.shadow_models,
        seed=args.seed,
        delta=args.delta,
        confidence=args.confidence,
    )
    print(found)
    return int(found.finding.violated)


def _add_common(parser: argparse.ArgumentParser) -> None:
    """Add what both have."""
    parser.add_argument(
        "--confidence", type=float, default=0.95, help="probability that the bounds are true (default 0.95)"
    )
    parser.add_argument("--plugins", default="", metavar="MODULES", help="modules to import first")


def _refuse(args: argparse.Namespace, name: str, owner: str) -> None:
    """Refuse an option that belongs to the other kind of audit."""
    value = getattr(args, name.replace("-", "_"))
    if value is not None:
        raise ConfigError(f"privacy audit: --{name}={value}, but it goes with {owner}; leave it out.")
