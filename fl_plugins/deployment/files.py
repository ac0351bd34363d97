"""Files that hold secrets: with their permissions from the first byte on, and never over another file."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fl_plugins.errors import ConfigError

SECRET = 0o600
PUBLIC = 0o644
PROGRAM = 0o755
PRIVATE_FOLDER = 0o700


def write_new(path: Path, content: bytes | str, *, mode: int = PUBLIC) -> None:
    """Write a file that does not exist yet, with exactly this mode whatever the umask is.

    Raises
    ------
    FileExistsError
        If something, even a dangling link, is there.
    """
    data = content.encode() if isinstance(content, str) else content
    # Created closed to others and opened up afterwards: never the other way round.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode & SECRET)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(file.fileno(), mode)
        file.write(data)


def make_folder(path: Path) -> Path:
    """Make a folder that only its owner can enter; return it."""
    path.mkdir(mode=PRIVATE_FOLDER, parents=True)
    path.chmod(PRIVATE_FOLDER)
    return path


@contextmanager
def appearing(folder: Path) -> Iterator[Path]:
    """Give a private folder that becomes ``folder`` if the block succeeds, and vanishes if it does not.

    Raises
    ------
    ConfigError
        If ``folder`` exists and is not an empty folder.
    """
    check_absent(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield draft
        check_absent(folder)
        draft.rename(folder)  # over an empty folder only: the system refuses any other
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def check_absent(folder: Path) -> None:
    """Refuse a path at which something is that would be overwritten.

    Raises
    ------
    ConfigError
        If so.
    """
    if folder.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
        raise ConfigError(
            f"deploy: {folder} exists already, and keys in it may be in use; give another folder, or delete "
            "it yourself."
        )
