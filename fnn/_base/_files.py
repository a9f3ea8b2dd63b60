"""Files that are written whole or not at all, and locks that end with the process that holds them.

A writer holds a lock (``flock``) on its temporary file. The kernel frees it when the writer dies,
so the next writer can tell a dead writer's temporary file from a living writer's, also if they are
in different containers and have the same process id.
"""

import contextlib
import functools
import hashlib
import os
import platform
import re
import secrets
import stat
import sys
import time
import weakref
from collections.abc import Iterator
from io import TextIOWrapper
from pathlib import Path

if sys.platform != "win32":
    import fcntl

_NAME = 50  # characters of a file's name in its temporary file's name; 255 bytes are allowed
_DAY = 86_400


def check_regular(path: str | Path) -> int | None:
    """The mode of the file, None if there is none. ValueError if it is a folder, a FIFO, a device.

    To open a FIFO would wait for its other end; a device may have no end.
    """
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(mode):
        kind = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}
        came = kind.get(stat.S_IFMT(mode), "a device")
        raise ValueError(f"{path} is {came}, expected a regular file")
    return stat.S_IMODE(mode)


def write_whole(path: str | Path, content: bytes) -> None:
    """Write a file, whole or not at all.

    - A file that was there is replaced when the new file is on the disk, not earlier. Its mode
      stays.
    - Through a symbolic link, the file that it points to is written.
    - Temporary files of killed writers of this file are removed.
    """
    mode = check_regular(path)
    path = Path(os.path.realpath(path))
    try:
        _write_whole(path, content, mode)
    except OSError as error:
        if error.errno and not error.filename:  # a full disk does not say where
            error.filename = str(path)
        raise


def _write_whole(path: Path, content: bytes, mode: int | None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_dead(path.parent, re.escape(path.name[:_NAME]))
    with _temporary(path, mode) as (file, part):
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(file.fileno(), rest) :]
        os.fsync(file.fileno())
        if mode is not None and mode != stat.S_IMODE(os.fstat(file.fileno()).st_mode):
            os.chmod(part, mode)
        if os.name != "posix":
            file.close()  # Windows does not rename an open file
        os.replace(part, path)
    if os.name == "posix":  # a folder can be opened here, and its new entry must reach the disk too
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextlib.contextmanager
def _temporary(path: Path, mode: int | None) -> Iterator[tuple[TextIOWrapper, Path]]:
    """A new file beside `path`, open and locked; removed at the end if it still has its name."""

    def opener(part: str, flags: int) -> int:
        return os.open(part, flags, 0o666 if mode is None else mode | stat.S_IRUSR | stat.S_IWUSR)

    while True:
        part = path.with_name(f".{path.name[:_NAME]}.{_host()}{secrets.token_hex(6)}.tmp")
        file = open(part, "x", opener=opener)  # noqa: SIM115, it outlives this block
        # Between these two lines another writer may have taken the file for a dead writer's.
        if lock(file.fileno()) is not False and part.exists():
            break
        file.close()
    try:
        yield file, part
    finally:
        file.close()
        with contextlib.suppress(OSError):
            part.unlink()


def remove_dead(folder: Path, names: str) -> None:
    """Remove temporary files of dead writers of the files whose names match the pattern `names`.

    A file is kept if a writer holds its lock, if the system cannot tell, and for a day if it was
    written under another kernel: a shared disk may not show the locks of another machine.
    """
    pattern = re.compile(rf"\.(?:{names})\.([0-9a-f]{{8}})[0-9a-f]{{12}}\.tmp")
    for entry in list(os.scandir(folder)):
        if found := pattern.fullmatch(entry.name):
            with contextlib.suppress(OSError), open(entry.path, "r+b") as file:
                age = time.time() - os.fstat(file.fileno()).st_mtime
                if (found[1] == _host() or age > _DAY) and lock(file.fileno()):
                    os.unlink(entry.path)


@functools.cache
def _host() -> str:
    """8 hexadecimal digits for the running kernel, the same in all of its containers."""
    try:
        name = Path("/proc/sys/kernel/random/boot_id").read_bytes()
    except OSError:
        name = platform.node().encode()
    return hashlib.sha256(name).hexdigest()[:8]


# --- locks --------------------------------------------------------------------------------------


def lock(descriptor: int, *, wait: bool = False) -> bool | None:
    """Whether the open file is now locked by us; None if the system has no such locks.

    The lock ends when the file is closed or the process dies.
    """
    if sys.platform == "win32":
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


_held: weakref.WeakSet[TextIOWrapper] = weakref.WeakSet()

if sys.platform != "win32":  # a forked child would hold its parent's lock longer than the parent
    os.register_at_fork(after_in_child=lambda: [file.close() for file in list(_held)])


@contextlib.contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[str]:
    """Hold the file `path` as a lock. Yields who else holds it, "" if nobody does.

    With `wait`, waits for its turn. The file is made, and removed at the end. A lock whose owner
    died is free.
    """
    while True:
        file = open(path, "a+", encoding="utf-8", errors="replace")  # noqa: SIM115, as above
        held = lock(file.fileno(), wait=wait) is not False
        if not held or _is_at(path, file):
            break
        file.close()  # its owner has removed it in the meantime
    try:
        if held:
            _held.add(file)
            with contextlib.suppress(OSError):  # a full disk
                os.ftruncate(file.fileno(), 0)
                os.write(file.fileno(), f"process {os.getpid()} on {platform.node()}".encode())
            yield ""
        else:
            file.seek(0)
            yield file.read() or "another process"
    finally:
        if held and not file.closed:
            with contextlib.suppress(OSError):
                os.unlink(path)
        file.close()


def _is_at(path: Path, file: TextIOWrapper) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
