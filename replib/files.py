"""Files that are written whole or not at all, and the folders of recorded runs."""

import errno
import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ASIDE = ".aside"  # ends the names of files that are being written
FULL_DISK = {errno.ENOSPC, errno.EFBIG} | {getattr(errno, "EDQUOT", errno.ENOSPC)}


class FileError(RuntimeError):
    """A file cannot be read or written; the message names the file and the remedy."""


def data_folder() -> Path:
    """The folder of recorded runs: `REPLIB_DATA`, else `data/` beside the package."""
    return Path(os.environ.get("REPLIB_DATA") or ROOT / "data").expanduser()


def cache_folder() -> Path:
    """The folder of live runs: `REPLIB_CACHE`, else `.replib_cache/` beside the package."""
    return Path(os.environ.get("REPLIB_CACHE") or ROOT / ".replib_cache").expanduser()


def replace_file(path: Path, content: str | bytes) -> None:
    """Write a file whole: aside, then renamed, so that a killed process or a full disk leaves the
    old one. What earlier processes left aside as they were killed is removed.

    Raises:
        FileError: the disk is full or the folder cannot be written; the file is as before.
    """
    path = Path(path).absolute()
    aside = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(8)}{ASIDE}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path.parent)
        descriptor = os.open(aside, flags | getattr(os, "O_BINARY", 0), 0o666)
        with open(descriptor, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(descriptor)
        os.replace(aside, path)
    except OSError as error:
        raise FileError(remedy(path, error)) from error
    finally:
        with suppress(OSError):
            aside.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what processes that are no more left aside in a folder as they were killed."""
    with suppress(OSError):
        for path in folder.glob(f".*{ASIDE}"):
            pid = path.name.split(".")[-3]
            if pid.isdigit() and not _is_running(int(pid)):
                path.unlink(missing_ok=True)


def _is_running(pid: int) -> bool:
    if os.name == "nt":  # where os.kill would end it
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


def read_whole(path: Path) -> bytes:
    """The content of a regular file; what would wait for a writer is refused.

    Raises:
        OSError: there is none, or it cannot be read.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags)
    with open(descriptor, "rb", buffering=0) as file:
        check_regular(descriptor)
        return file.readall()


def check_regular(descriptor: int) -> None:
    """
    Raises:
        OSError: an open file is a folder, a pipe or a device.
    """
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise OSError(errno.EINVAL, "it is no regular file")


def writable(folder: Path) -> str | None:
    """Why a folder cannot be written to; None if it can."""
    path = Path(folder) / f".writable_{os.getpid()}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
        path.unlink()
    except OSError as error:
        return remedy(path, error)
    return None


def remedy(path: Path, error: OSError) -> str:
    """What went wrong with a file, and what to do about it."""
    elsewhere = ""
    if path.is_relative_to(cache_folder().absolute()):
        elsewhere = " or set REPLIB_CACHE to another folder"
    elif path.suffix == ".jsonl" or path.is_relative_to(data_folder().absolute()):
        elsewhere = " or set REPLIB_DATA to another folder"
    if error.errno in FULL_DISK:
        return f"disk full: free space{elsewhere}; {path} is unchanged"
    reason = error.strerror or error
    return f"no access to {path} ({reason}): allow it{elsewhere}"
