"""Files are written whole or not at all, by any number of writers, wherever the path leads."""

import errno
import os
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from fnn import checkpoint
from fnn._base import _files as files

resource = pytest.importorskip("resource", reason="flock, modes, FIFOs: not on Windows")

LARGE = {"a": np.zeros(50_000)}


def tree(n=0.0):
    return {"a": np.full(5, float(n))}


def value(path):
    return checkpoint.load(path, tree())[0]["a"][0]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def part(path, kernel=None, digits="0" * 12):
    """The name of a temporary file of a writer of `path`."""
    return path.with_name(f".{path.name[:50]}.{kernel or files._host()}{digits}.tmp")


# --- a write that fails ---------------------------------------------------------------------------


def full_disk(descriptor, content):
    """os.write of a disk that is full after 100 more bytes."""
    if full_disk.left <= 0:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    full_disk.left -= 100
    return WRITE(descriptor, content[:100])


WRITE = os.write


@pytest.mark.parametrize("new", [True, False])
def test_a_full_disk_leaves_what_was_there(new, tmp_path, monkeypatch):
    path = tmp_path / "step_00000001.safetensors"
    if not new:
        checkpoint.save_last(tmp_path, tree(1.0), step=1)
    monkeypatch.setattr(os, "write", full_disk)
    for save in (
        lambda: checkpoint.save(path, LARGE),
        lambda: checkpoint.save_last(tmp_path, LARGE, step=2),
    ):
        full_disk.left = 1000
        with pytest.raises(
            OSError, match=rf"No space left on device: '{tmp_path}/step_0000000[12]\.saf"
        ):
            save()
    assert names(tmp_path) == ([] if new else [path.name])
    assert new or value(path) == 1.0


def test_a_disk_that_takes_a_few_bytes_at_a_time(tmp_path, monkeypatch):
    full_disk.left = 10**9
    monkeypatch.setattr(os, "write", full_disk)
    checkpoint.save(tmp_path / "x", tree(2.0))
    assert value(tmp_path / "x") == 2.0


def test_a_file_larger_than_may_be_leaves_what_was_there(tmp_path):
    """The kernel itself stops the write half-way."""
    path = tmp_path / "x.safetensors"
    checkpoint.save(path, tree(1.0))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"File too large: .*x\.safetensors"):
            checkpoint.save(path, LARGE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(tmp_path) == [path.name]
    assert value(path) == 1.0


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_call_that_fails_leaves_what_was_there(call, tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    checkpoint.save(path, tree(1.0))

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="no space left"):
        checkpoint.save(path, tree(2.0))
    assert names(tmp_path) == [path.name]
    assert value(path) == 1.0


def test_no_descriptor_is_lost(tmp_path, monkeypatch):
    """Where fsync of the folder fails, where everything does, and where nothing does."""
    path, sync = tmp_path / "x.safetensors", os.fsync

    def open_descriptors():
        return len(os.listdir("/dev/fd"))

    def fail(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode) or which == "every":
            raise OSError("fsync failed")
        sync(descriptor)

    checkpoint.save(path, tree())
    before = open_descriptors()
    monkeypatch.setattr(os, "fsync", fail)
    which = "the folder's"
    for _ in range(6):
        with pytest.raises(OSError, match="fsync failed"):
            checkpoint.save(path, tree())
        which = "every" if which != "every" else "the folder's"
    monkeypatch.undo()
    for _ in range(3):
        checkpoint.save(path, tree())
        checkpoint.load(path)
        with checkpoint.run_lock("train", tmp_path):
            pass
    assert open_descriptors() == before


# --- where a path leads ---------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444, 0o666, 0o400])
def test_the_mode_stays(mode, tmp_path, monkeypatch):
    path, modes, sync = tmp_path / "x.safetensors", [], os.fsync
    checkpoint.save(path, tree())
    path.chmod(mode)

    def fsync(descriptor):
        modes.append(stat.S_IMODE(os.fstat(descriptor).st_mode))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    checkpoint.save(path, tree(1.0))
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert not modes[0] & ~(mode | 0o600)  # nobody else could read it in the meantime


def test_the_mode_of_a_new_file_is_the_users(tmp_path):
    before = os.umask(0o027)
    try:
        checkpoint.save(tmp_path / "x.safetensors", tree())
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x.safetensors").stat().st_mode) == 0o640


def test_a_symbolic_link_is_followed(tmp_path):
    (tmp_path / "disk").mkdir()
    file, link = tmp_path / "disk" / "real.safetensors", tmp_path / "link.safetensors"
    link.symlink_to(file)
    for n in (1.0, 2.0):  # at first the file is not there yet
        checkpoint.save(link, tree(n))
        assert link.is_symlink()
        assert (value(file), value(link)) == (n, n)
    assert names(tmp_path / "disk") == [file.name]
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(OSError, match="symbolic links"):
        checkpoint.save(loop, tree())


@pytest.mark.parametrize("name", ["x" * 255, "ö" * 127, "x.y" * 80, "*[a-z]?\n.safetensors"])
def test_every_file_name(name, tmp_path):
    path = tmp_path / name
    part(path).write_bytes(b"half")
    checkpoint.save(path, tree(1.0))
    assert value(path) == 1.0
    assert names(tmp_path) == [name]


def test_what_is_no_regular_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    paths = {tmp_path / "fifo": "a FIFO", tmp_path: "a folder", Path("/dev/zero"): "a device"}
    for path, kind in paths.items():
        for use in (
            checkpoint.load,
            checkpoint.describe,
            checkpoint.read_header,
            lambda path: checkpoint.load_leaves(path, {}, names=["*"]),
            lambda path: checkpoint.save(path, tree()),
        ):
            with pytest.raises(ValueError, match=f"{path} is {kind}, expected a regular file"):
                use(path)
    assert stat.S_ISCHR(os.stat("/dev/zero").st_mode)
    with pytest.raises(FileNotFoundError, match="none_such"):
        checkpoint.load(tmp_path / "none_such")


# --- several writers ------------------------------------------------------------------------------


def test_writers_of_one_path_do_not_meet(tmp_path, monkeypatch):
    """As in containers: each has the same process id. Each also looks for dead writers' files."""
    monkeypatch.setattr(os, "getpid", lambda: 1)
    monkeypatch.setattr(os, "fsync", lambda _: None)
    path = tmp_path / "x.safetensors"

    def work(n):
        for _ in range(40):
            checkpoint.save(path, tree(n))
            assert value(path) in range(8)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert names(tmp_path) == [path.name]


def test_a_new_file_that_is_taken_for_a_dead_writers(tmp_path, monkeypatch):
    """Another writer looks between its creation and its lock."""
    taken = []

    def lock(descriptor, **options):
        if len(taken) < 3:
            taken.extend(tmp_path.glob(".*.tmp"))
            taken[-1].unlink()
        return True

    monkeypatch.setattr(files, "lock", lock)
    checkpoint.save(tmp_path / "x", tree(1.0))
    assert len(taken) == 3
    assert value(tmp_path / "x") == 1.0
    assert names(tmp_path) == ["x"]


@pytest.mark.parametrize("save", [checkpoint.save, None], ids=["save", "save_last"])
def test_dead_writers_files_are_removed_and_no_others(save, tmp_path):
    path, other_kernel = tmp_path / "step_00000007.safetensors", "0123abcd"
    dead, mine, fresh, old = (part(path, *named) for named in [
        (None, "1" * 12), (None, "2" * 12), (other_kernel, "3" * 12), (other_kernel, "4" * 12)
    ])  # fmt: skip
    of_another_step = part(tmp_path / "step_00000006.safetensors")
    of_others = [tmp_path / name for name in (f".{path.name}.12.tmp", f"{dead.name}.txt", ".tmp")]
    of_others.append(part(tmp_path / "step_00000007.safetensors.old"))
    for file in (dead, mine, fresh, old, of_another_step, *of_others):
        file.write_bytes(b"half")
    os.utime(old, (0, time.time() - 2 * 86_400))
    with open(mine) as living:
        assert files.lock(living.fileno())
        if save:
            checkpoint.save(path, tree())
        else:
            checkpoint.save_last(tmp_path, tree(), step=7)
        kept = {path, mine, fresh, *of_others, *([of_another_step] if save else [])}
        assert set(tmp_path.iterdir()) == kept
    checkpoint.save(path, tree())
    assert set(tmp_path.iterdir()) == kept - {mine}


@pytest.mark.parametrize("broken", [OSError(errno.ENOLCK, "no locks"), OSError(errno.ENOTSUP, "")])
def test_a_disk_without_locks(broken, tmp_path, monkeypatch):
    """Nothing of others is removed, nothing is refused."""

    def flock(*_):
        raise broken

    monkeypatch.setattr(files.fcntl, "flock", flock)
    path = tmp_path / "x.safetensors"
    part(path).write_bytes(b"half")
    for _ in range(2):
        with checkpoint.run_lock("train", tmp_path), checkpoint.run_lock("train", tmp_path):
            checkpoint.save(path, tree(1.0))
    assert names(tmp_path) == [part(path).name, path.name]


def test_a_folder_that_cannot_be_written_to(tmp_path, monkeypatch):
    """Root may write everywhere, so the permission is refused by hand."""

    def refuse(path, *_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(PermissionError, match=rf"Permission denied: '{tmp_path}/\.x\."):
        checkpoint.save(tmp_path / "x", tree())
    assert not names(tmp_path)
