"""The start script, systemd unit and compose file of each role: text only.

All three run the same ``start.sh``, which finds what it needs beside itself, so that a folder works wherever
it is copied to.
"""

import shlex

from fl_plugins import __version__

from .layout import Settings

INSTALL_FOLDER = "/opt/fl-plugins"
"""Where the systemd units expect ``server/``, ``node/`` and the virtual environment ``venv/``."""

ROLE_VARIABLE = "FL_PLUGINS_ROLE_FOLDER"
"""Set in the environment of every process that a role starts: by it they are found when they are ended."""

_HEAD = f"""#!/bin/sh
# {{what}} in the foreground. Further arguments are passed on to {{command}}.
set -eu
umask 077
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd -P)
set -a
. "$here/settings.env"
{ROLE_VARIABLE}=$here
FLWR_HOME=$here/state/flwr
FLWR_TELEMETRY_ENABLED=0
FLWR_DISABLE_UPDATE_CHECK=1
# Code comes from what is installed here, never from what an app asks to have installed.
FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1
set +a
mkdir -p "$FLWR_HOME"
cd "$here/state"
"""

_SERVER_START = (
    _HEAD.format(what="Starts the SuperLink", command="flower-superlink")
    + """exec flower-superlink \\
    --ssl-ca-certfile "$here/ca.crt" --ssl-certfile "$here/server.crt" --ssl-keyfile "$here/server.key" \\
    --enable-supernode-auth --host "$BIND" --port "$PORT" --database "$here/state/superlink.db" \\
    --isolation subprocess --disable-runtime-dependency-installation "$@"
"""
)

_NODE_START = (
    _HEAD.format(what="Starts this node's SuperNode", command="flower-supernode")
    + """node_config="partition-id=$PARTITION_ID num-partitions=$NUM_PARTITIONS"
if [ -n "${POLICY-}" ]; then
    node_config="$node_config policy=\\"$here/$POLICY\\""
    export FL_PLUGINS_POLICY="$here/$POLICY"
fi
# Beside this script: this node's identity and its peers', for secure aggregation's malicious tier.
for file in identity.pem roster.toml; do
    if [ -f "$here/secagg_$file" ]; then
        node_config="$node_config secagg-${file%.*}=\\"$here/secagg_$file\\""
    fi
done
node_config="$node_config${NODE_CONFIG:+ $NODE_CONFIG}"
if [ -d "$here/data" ]; then export FL_PLUGINS_DATA="$here/data"; fi
exec fl-plugins-supernode \\
    --root-certificates "$here/ca.crt" --superlink "$SUPERLINK" \\
    --auth-supernode-private-key "$here/node.key" --node-config "$node_config" \\
    --host 127.0.0.1 --port "$RUNTIME_PORT" --isolation subprocess "$@"
"""
)

_UNIT = """[Unit]
Description={description}
Wants=network-online.target
After=network-online.target

[Service]
User=flower
Environment=PATH={install}/venv/bin:/usr/bin:/bin
Environment=XDG_CACHE_HOME={folder}/state/cache
ExecStart={folder}/start.sh
Restart=always
RestartSec=5
UMask=0077
NoNewPrivileges=true
PrivateTmp=true
ProtectSystem=strict
ProtectHome=true
ReadWritePaths={folder}/state

[Install]
WantedBy=multi-user.target
"""

_COMPOSE = """\
# Put fl-plugins' wheel into wheels/ first; nothing else goes into the image (.dockerignore).
services:
  {service}:
    build:
      context: .
      dockerfile_inline: |
        FROM python:3.11-slim
        COPY wheels/ /wheels/
        RUN pip install --no-cache-dir /wheels/fl_plugins-{version}-py3-none-any.whl
    command: ["/deployment/start.sh"]
    user: "${{DEPLOY_UID:-1000}}:${{DEPLOY_GID:-1000}}"
    environment:
      HOME: /deployment/state
    volumes:
      - ./:/deployment:ro
      - ./state:/deployment/state
{ports}    read_only: true
    tmpfs: ["/tmp"]
    cap_drop: ["ALL"]
    security_opt: ["no-new-privileges:true"]
    restart: unless-stopped
"""

DOCKER_IGNORE = "*\n!wheels\n"


def server_files(settings: Settings) -> dict[str, str]:
    """Return the SuperLink's text files by name; none is secret."""
    bind = settings.host if settings.is_local else "0.0.0.0"  # noqa: S104  # what nodes elsewhere connect to
    return {
        "start.sh": _SERVER_START,
        "settings.env": _settings_env("the SuperLink", BIND=bind, PORT=settings.port),
        "fl-plugins-superlink.service": _unit("Flower SuperLink", "server"),
        "docker-compose.yml": _COMPOSE.format(
            service="superlink",
            version=__version__,
            ports=f'    ports: ["{settings.port}:{settings.port}"]\n',
        ),
        ".dockerignore": DOCKER_IGNORE,
    }


def node_files(settings: Settings, number: int) -> dict[str, str]:
    """Return the text files of node ``number`` by name; none is secret."""
    env = _settings_env(
        "this node",
        SUPERLINK=settings.address,
        PARTITION_ID=number,
        NUM_PARTITIONS=settings.num_nodes,
        RUNTIME_PORT=settings.runtime_port + number,
    )
    hints = (
        "# Where this node's data are; a folder data/ beside this file is used if there is one.\n"
        "#FL_PLUGINS_DATA=/srv/data\n"
        "# What this node's operator demands of a run before it touches the data.\n"
        "#POLICY=policy.toml\n"
        "# More of this node's own config, for example how few clients it lets itself be summed with.\n"
        "#NODE_CONFIG='secagg-min-clients=5'\n"
    )
    return {
        "start.sh": _NODE_START,
        "settings.env": env + hints,
        "policy.toml": _POLICY,
        "fl-plugins-supernode.service": _unit("Flower SuperNode", "node"),
        "docker-compose.yml": _COMPOSE.format(service="supernode", version=__version__, ports=""),
        ".dockerignore": DOCKER_IGNORE,
    }


_POLICY = """# What this node demands of a run. It is in force once settings.env names it: POLICY=policy.toml
# Nothing here is demanded until a line is uncommented; docs/deployment.md explains every line.

# tasks = ["heart_disease"]    # the only tasks that this node trains
# min_cohort = 3               # refuse an exchange that fewer clients take part in
# max_rounds = 200             # training messages that this node answers, over all runs
# state = "state/policy.json"  # where it counts them: as a service it can write in state/ only
# dataset = "data/heart_disease"  # where the task finds this node's data, relative to this file
# fab_hashes = ["<sha256>"]    # the only app bundles that may start here: sha256sum of a built .fab file

# [layers.secure_aggregation]  # the server may see the sum of updates only
# tier = "honest-but-curious"

# [layers.distributed_dp]      # it may see only sums to which every node has added noise
# min_noise_multiplier = 1.0

# [promises.central_dp]        # what the server must say that it does; a node cannot see whether it is done
# unit = "client"
# min_noise_multiplier = 1.0
"""


def operator_files(settings: Settings, root_certificate: str) -> dict[str, str]:
    """Return Flower's connection file for ``flwr run . deployment``; the certificate's path is absolute."""
    from fl_plugins.simulation.app_template import to_toml

    tables = {
        "superlink": {"default": "deployment"},
        "superlink.deployment": {"address": settings.address, "root-certificates": root_certificate},
    }
    return {"config.toml": to_toml(tables)}


def _settings_env(of: str, **values: str | int) -> str:
    """Return variables as a file that both sh and systemd read."""
    lines = [f"{key}={shlex.quote(str(value))}" for key, value in values.items()]
    return "\n".join([f"# Settings of {of}: start.sh reads them.", *lines, ""])


def _unit(description: str, folder: str) -> str:
    """Return a systemd unit."""
    return _UNIT.format(description=description, install=INSTALL_FOLDER, folder=f"{INSTALL_FOLDER}/{folder}")
