"""Makes a deployment: every certificate, key and file, all at once or not at all."""

from pathlib import Path

from .certificates import issue_server, make_authority
from .files import PROGRAM, SECRET, appearing, make_folder, write_new
from .layout import SETTINGS_FILE, Layout, Settings
from .node_keys import make_node_key
from .scripts import node_files, operator_files, server_files


def create(root: Path, settings: Settings) -> Layout:
    """Write a deployment into ``root``, which does not exist or is empty, and return it.

    Guarantees
    ----------
    Folders have mode 0700 and secrets 0600 from the moment that they exist. A node's folder holds its own
    private key and no other secret; the authority's key is in ``authority/`` only.

    Raises
    ------
    ConfigError
        If something is there already.
    """
    final = Layout(root.resolve(), settings)
    with appearing(final.root) as folder:
        _write(Layout(folder, settings), final)
    return final


def _write(draft: Layout, final: Layout) -> None:
    """Write everything into the draft; paths in files are the final ones."""
    settings = draft.settings
    authority = make_authority()
    server = issue_server(authority, host=settings.host, days=settings.days)
    root_certificate = authority.certificate_pem()

    write_new(draft.root / SETTINGS_FILE, draft.describe())
    write_new(draft.root / ".gitignore", "*\n")  # made in a checkout, its keys are not to be committed
    make_folder(draft.authority)
    write_new(draft.authority / "ca.key", authority.key_pem(), mode=SECRET)
    write_new(draft.root_certificate, root_certificate)

    make_folder(draft.server.folder)
    write_new(draft.server.folder / "ca.crt", root_certificate)
    write_new(draft.server.folder / "server.crt", server.certificate_pem())
    write_new(draft.server.folder / "server.key", server.key_pem(), mode=SECRET)
    _write_texts(draft.server.folder, server_files(settings))
    make_folder(draft.server.state)
    make_folder(draft.server.folder / "node_keys")

    make_folder(draft.root / "nodes")
    for number, node in enumerate(draft.nodes):
        key = make_node_key(f"node-{number}")
        make_folder(node.folder)
        write_new(node.folder / "ca.crt", root_certificate)
        write_new(node.folder / "node.key", key.private, mode=SECRET)
        write_new(node.folder / "node.pub", key.public)
        write_new(draft.public_key(number), key.public)
        _write_texts(node.folder, node_files(settings, number))
        make_folder(node.state)

    make_folder(draft.operator)
    write_new(draft.operator / "ca.crt", root_certificate)
    _write_texts(draft.operator, operator_files(settings, str(final.operator / "ca.crt")))


def _write_texts(folder: Path, texts: dict[str, str]) -> None:
    """Write text files; scripts can be run."""
    for name, text in texts.items():
        write_new(folder / name, text, mode=PROGRAM if name.endswith(".sh") else 0o644)
