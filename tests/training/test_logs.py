import os
import time
import warnings

import pytest

from fnn import logs

METRICS = [{"loss": 3.0, "accuracy": 0.5}, {"loss": 2.0, "accuracy": 0.75}]


def lines(path):
    return path.read_bytes().decode().split("\r\n")


def write(path, epochs):
    log = logs.to_csv(path)
    for epoch in epochs:
        log(epoch, {"loss": epoch / 2, "accuracy": 0.5})


ROWS = [f"{epoch},{epoch / 2},0.5" for epoch in range(9)]


def test_csv(tmp_path):
    path = tmp_path / "run" / "log.csv"
    write(path, range(2))
    write(path, range(2, 4))  # another process goes on
    assert lines(path) == ["epoch,loss,accuracy", *ROWS[:4], ""]
    before = path.read_bytes()
    said = r"to_csv: .*log.csv has the columns .*, expected \['epoch', 'loss'\]"
    with pytest.raises(ValueError, match=said):
        logs.to_csv(path)(4, {"loss": 1.0})
    assert path.read_bytes() == before


@pytest.mark.parametrize("start", [0, 3, 6, 7])
def test_an_epoch_stands_once(start, tmp_path):
    """A run that was killed resumes at its last checkpoint, or at epoch 0 if it had none."""
    path = tmp_path / "log.csv"
    write(path, range(6))
    path.chmod(0o600)
    write(path, range(start, 8))
    kept = [epoch for epoch in range(8) if epoch < 6 or epoch >= start]
    assert lines(path) == ["epoch,loss,accuracy", *(ROWS[epoch] for epoch in kept), ""]
    assert path.stat().st_mode & 0o777 == 0o600
    log = logs.to_csv(path)
    for epoch in (0, 5, 0, 1):  # one log for two runs, and not of every epoch
        log(epoch, {"loss": epoch / 2, "accuracy": 0.5})
    assert lines(path) == ["epoch,loss,accuracy", *ROWS[:2], ""]
    assert [file.name for file in tmp_path.iterdir()] == ["log.csv"]


def test_a_csv_that_was_cut(tmp_path):
    """At every byte, by a kill or a full disk: no two lines become one, and the rest stays."""
    path = tmp_path / "log.csv"
    write(path, range(2))
    whole = path.read_bytes()
    header = whole.index(b"\n") + 1
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            write(path, [2])
        kept = [ROWS[i] for i in range(whole[header:size].count(b"\n"))]
        assert lines(path) == ["epoch,loss,accuracy", *kept, ROWS[2], ""]
        assert len(caught) == (size > 0 and whole[size - 1] != ord("\n"))
    path.write_bytes(whole[:-4])
    with pytest.warns(UserWarning, match=r"log\.csv ended in a line that was cut.*, '1,0\.5,0'"):
        write(path, [2])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"my notes", r"has the columns \['my notes'\], expected"),
        (b"my notes\n", r"has the columns \['my notes'\], expected"),
        (b"epoch,loss,accuracy\n0,0.121,1.0,0.5,3\n", r"has \['0', .*'3'\] in line 2, expected a line of 3"),
        (b"epoch,loss,accuracy\n0,0.1,1.0\nx,0.1,1.0\n", r"has \['x', .*\] in line 3, expected"),
        (b"\xff\xfe\x00", r"is no CSV file: 'utf-8' codec"),
    ],
)  # fmt: skip
def test_others_files_stay(content, said, tmp_path):
    path = tmp_path / "log.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"to_csv: {path} {said}"):
        write(path, [0])
    assert path.read_bytes() == content


def test_a_csv_that_cannot_be_written_says_which(tmp_path):
    log = logs.to_csv(tmp_path / "full")
    (tmp_path / "full").symlink_to("/dev/full")
    with pytest.raises(OSError, match=rf"No space left on device: '{tmp_path}/full'"):
        log(0, METRICS[0])
    with pytest.raises(IsADirectoryError, match=rf"Is a directory: '{tmp_path}'"):
        logs.to_csv(tmp_path)(0, METRICS[0])


def test_a_csv_of_a_full_disk_goes_on_when_there_is_space(tmp_path):
    resource = pytest.importorskip("resource")
    path, limits = tmp_path / "log.csv", resource.getrlimit(resource.RLIMIT_FSIZE)
    write(path, range(3))
    log = logs.to_csv(path)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 3, limits[1]))
    try:
        with pytest.raises(OSError, match=rf"File too large: '{path}'"):
            log(3, {"loss": 1.5, "accuracy": 0.5})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert lines(path)[-1] == "3,1"
    with pytest.warns(UserWarning, match="cut short, '3,1'"):
        log(4, {"loss": 2.0, "accuracy": 0.5})
    log(5, {"loss": 2.5, "accuracy": 0.5})
    assert lines(path) == ["epoch,loss,accuracy", *ROWS[:3], *ROWS[4:6], ""]


def test_a_csv_into_a_fifo(tmp_path):
    path, read = tmp_path / "fifo", []
    os.mkfifo(path)
    holder = os.open(path, os.O_RDWR)  # so that no end waits for the other
    write(path, range(2))
    read = os.read(holder, 1000).decode().split()
    os.close(holder)
    assert read == ["epoch,loss,accuracy", *ROWS[:2]]


def test_all_are_called_in_turn():
    called = []
    log = logs.to_all(*(lambda *given, n=n: called.append((n, *given)) for n in range(2)))
    log(7, METRICS[0])
    assert called == [(0, 7, METRICS[0]), (1, 7, METRICS[0])]


def test_all_are_called_if_one_fails():
    called = []

    def full(epoch, metrics):
        raise OSError("disk full")

    def gone(epoch, metrics):
        raise ConnectionError("server gone")

    def good(epoch, metrics):
        called.append(epoch)

    with pytest.raises(OSError, match="disk full"):
        logs.to_all(full, good)(1, {})
    with pytest.raises(ExceptionGroup, match="to_all: 2 of 3 logs failed") as caught:
        logs.to_all(full, gone, good)(2, {})
    assert [str(error) for error in caught.value.exceptions] == ["disk full", "server gone"]
    assert called == [1, 2]


def test_tensorboard(tmp_path):
    """And a run that resumes: TensorBoard hides the events from its start on."""
    pytest.importorskip("tensorboardX", reason="tensorboardX is not installed")
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    for start in (0, 1):
        folder = tmp_path / str(start)
        log = logs.to_tensorboard(folder)
        for epoch, metrics in enumerate(METRICS[start:], start):
            log(epoch, metrics)
        (file,) = folder.glob("events.out.tfevents*")
        for _ in range(100):  # tensorboardX writes in a thread of its own
            if b"accuracy" in file.read_bytes():
                break
            time.sleep(0.1)
        raw, events = file.read_bytes(), []
        while raw:  # a record: its length in 8 bytes, a checksum in 4, the event, a checksum in 4
            size = int.from_bytes(raw[:8], "little")
            events.append(Event.FromString(raw[12 : 12 + size]))
            raw = raw[16 + size :]
        starts = [e.step for e in events if e.session_log.status == SessionLog.START]
        assert starts == [start]
        assert {v.tag for e in events for v in e.summary.value} == {"loss", "accuracy"}
