import gzip
import hashlib
import io
import os
import re
import socket
import tarfile
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnn
from fnn import datasets
from fnn.data.datasets import _cache as cache
from fnn.data.datasets._images import parse_idx

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 28, 28), dtype=np.uint8)
LABELS = np.array([3, 1, 4, 1, 5], np.uint8)
NAMES = "text/names.txt"


def idx(array):
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


class Server:
    """Serves `files` by name; notes every request; cuts the next answers after `cuts` bytes.

    With a `pause`, it sends two bytes, and waits so long, and so on; if `endless`, for ever.
    """

    def __init__(self):
        self.files, self.requests, self.cuts, self.ranges = {}, [], [], True
        self.pause, self.endless = 0, False
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                server.answer(self)

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self, request):
        name, asked = request.path[1:], request.headers["Range"]
        self.requests.append((name, asked))
        if name not in self.files:
            request.send_error(404)
            return
        content, start = self.files[name], 0
        if asked and self.ranges:
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
            if start >= len(content):
                request.send_error(416)
                return
        request.send_response(206 if start else 200)
        if not self.endless:
            request.send_header("Content-Length", str(len(content) - start))
        request.end_headers()
        end = start + self.cuts.pop(0) if self.cuts else len(content)
        try:
            while self.endless or self.pause:
                request.wfile.write(content[start : start + 2] if self.pause else content)
                start += 2
                time.sleep(self.pause)
                if start >= end and not self.endless:
                    return
            request.wfile.write(content[start:end])
        except ConnectionError:  # the reader has gone
            pass


@pytest.fixture
def server():
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


@pytest.fixture
def place(server, monkeypatch, tmp_path):
    """A cache folder of its own, and a function that has the server offer a file for a name."""
    monkeypatch.setenv("FNN_DATA", str(tmp_path / "data"))

    def place(name, content, sha256=None, size=None):
        url = server.url + name.split("/")[-1]
        server.files[name.split("/")[-1]] = content
        sha256 = sha256 or hashlib.sha256(content).hexdigest()
        if size is None:
            size = len(gzip.decompress(content) if name.endswith("-ubyte.gz") else content)
        monkeypatch.setitem(cache.FILES, name, cache.File((url,), sha256, size))
        return tmp_path / "data" / name

    return place


@pytest.fixture
def offline(monkeypatch):
    def refuse(*args, **kwargs):
        raise socket.gaierror("no such host")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


def place_mnist(place, folder="mnist", part="t10k"):
    return [
        place(f"{folder}/{part}-{name}-ubyte.gz", gzip.compress(idx(array)))
        for name, array in (("images-idx3", IMAGES), ("labels-idx1", LABELS))
    ]


# --- the cache ----------------------------------------------------------------------------------


def test_downloaded_once_into_the_folder(place, server):
    path = place(NAMES, b"ada\nbob")
    assert datasets.names() == ["ada", "bob"]
    assert datasets.names() == ["ada", "bob"]
    assert server.requests == [("names.txt", None)]
    assert path.read_bytes() == b"ada\nbob"
    assert [file.name for file in path.parent.iterdir()] == ["names.txt"]  # no .part left


def test_the_folder_is_in_the_home_without_fnn_data(monkeypatch):
    monkeypatch.setenv("FNN_DATA", "")
    monkeypatch.setenv("HOME", "/home/of-somebody")
    assert cache.folder() == Path("/home/of-somebody/.cache/fnn")
    monkeypatch.setenv("FNN_DATA", "~/elsewhere")
    assert cache.folder() == Path("/home/of-somebody/elsewhere")


def test_a_download_that_is_cut_goes_on_where_it_stopped(place, server):
    content = "\n".join(f"name{i}" for i in range(1000)).encode()
    place(NAMES, content)
    server.cuts = [100, 1000]
    assert len(datasets.names()) == 1000
    ranges = [asked for _, asked in server.requests]
    assert ranges == [None, "bytes=100-", "bytes=1100-"]


def test_a_download_of_an_earlier_run_goes_on(place, server):
    content = bytes(range(97, 123)) * 10
    path = place(NAMES, content)
    server.cuts = [50, 0]
    with pytest.raises(OSError, match=r"names\.txt is missing and could.*cut off after 50 bytes"):
        datasets.names()
    assert not path.exists()
    assert path.with_name("names.txt.part").read_bytes() == content[:50]
    assert datasets.names() == [content.decode()]
    assert server.requests[-1] == ("names.txt", "bytes=50-")


def test_a_server_that_cannot_go_on_is_not_asked_for_ever(place, server):
    place(NAMES, b"x" * 100)
    server.ranges, server.cuts = False, [50] * 10
    with pytest.raises(OSError, match="cut off after 50 bytes"):
        datasets.names()
    assert len(server.requests) == 2


@pytest.mark.parametrize("start", [b"", b"ada", b"ada\nbob", b"eve", b"eve eve eve eve"])
@pytest.mark.parametrize("ranges", [True, False])
def test_whatever_an_earlier_run_left_the_file_is_right(place, server, start, ranges):
    path = place(NAMES, b"ada\nbob")
    server.ranges = ranges
    path.parent.mkdir(parents=True)
    path.with_name("names.txt.part").write_bytes(start)
    assert datasets.names() == ["ada", "bob"]
    assert ranges or len(server.requests) == 1  # all of it came: nothing to append to
    assert path.read_bytes() == b"ada\nbob"


@pytest.mark.parametrize("bad", [b"", b"ada", b"ada\nbo8", b"ada\nbob\n"])
def test_a_corrupt_file_is_named_and_fetched_again(place, server, bad):
    path = place(NAMES, b"ada\nbob")
    path.parent.mkdir(parents=True)
    path.write_bytes(bad)
    with pytest.warns(UserWarning, match=rf"{path} is corrupt or cut off"):
        assert datasets.names() == ["ada", "bob"]
    assert path.read_bytes() == b"ada\nbob"


def test_a_corrupt_file_is_not_used_if_there_is_no_other(place, server):
    path = place(NAMES, b"ada\nbob")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"eve")
    server.files.clear()
    with (
        pytest.warns(UserWarning, match="corrupt"),
        pytest.raises(OSError, match=rf"{path} is corrupt .* could not be downloaded .*404"),
    ):
        datasets.names()


def test_the_wrong_file_twice_is_an_error(place, server):
    path = place(NAMES, b"eve", sha256="0" * 64)
    with pytest.raises(
        OSError, match=r"names\.txt is missing.*two downloads did not have the sha256 00"
    ):
        datasets.names()
    assert len(server.requests) == 2
    assert list(path.parent.iterdir()) == []


def test_the_next_mirror_is_asked(place, server, monkeypatch):
    place(NAMES, b"ada")
    good = cache.FILES[NAMES]
    monkeypatch.setitem(cache.FILES, NAMES, good._replace(urls=(server.url + "no", *good.urls)))
    assert datasets.names() == ["ada"]
    assert [name for name, _ in server.requests] == ["no", "names.txt"]


@pytest.mark.usefixtures("offline")
def test_offline_the_error_says_what_to_put_where(monkeypatch, tmp_path):
    monkeypatch.setenv("FNN_DATA", str(tmp_path))
    with pytest.raises(OSError, match="no such host") as error:
        datasets.mnist()
    path = tmp_path / "mnist" / "train-images-idx3-ubyte.gz"
    assert f"{path} is missing" in str(error.value)
    assert f"train-images-idx3-ubyte.gz on another machine and put it at {path}" in str(error.value)
    assert "set FNN_DATA to a folder that has the file as mnist/train-images" in str(error.value)


@pytest.mark.usefixtures("offline")
def test_a_folder_that_cannot_be_written_to_will_do(place, monkeypatch):
    for path in place_mnist(place):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(idx(IMAGES if "images" in path.name else LABELS)))
        path.chmod(0o444)
    path.parent.chmod(0o555)

    def refuse(*args, **kwargs):  # for those whom no permission stops
        raise PermissionError(args)

    for name in ("mkdir", "touch", "write_bytes", "replace", "unlink"):
        monkeypatch.setattr(Path, name, refuse)
    np.testing.assert_array_equal(datasets.mnist("test")[1], LABELS)
    with pytest.raises(OSError, match=r"train-images-idx3-ubyte\.gz is missing"):
        datasets.mnist("train")
    path.parent.chmod(0o755)


def test_a_gzip_file_packed_anew_is_accepted(place, server):
    images = place_mnist(place)[0]
    inside = hashlib.sha256(idx(IMAGES)).hexdigest()
    place("mnist/t10k-images-idx3-ubyte.gz", gzip.compress(idx(IMAGES), mtime=1), inside)
    datasets.mnist("test")
    images.write_bytes(gzip.compress(idx(IMAGES), 1, mtime=2))
    requests = len(server.requests)
    np.testing.assert_array_equal(datasets.mnist("test", dtype=np.uint8)[0][..., 0], IMAGES)
    assert len(server.requests) == requests
    images.write_bytes(gzip.compress(idx(255 - IMAGES)))
    with pytest.warns(UserWarning, match="corrupt"):
        np.testing.assert_array_equal(datasets.mnist("test", dtype=np.uint8)[0][..., 0], IMAGES)


def test_every_file_has_a_hash_and_a_source():
    assert len(cache.FILES) == 11
    for name, file in cache.FILES.items():
        assert re.fullmatch(r"[a-z0-9-]+/[a-z0-9.-]+", name)
        assert re.fullmatch(r"[0-9a-f]{64}", file.sha256)
        assert all(re.match(r"https?://", url) for url in file.urls)
    assert len({file.sha256 for file in cache.FILES.values()}) == len(cache.FILES)
    assert len({url for file in cache.FILES.values() for url in file.urls}) == 19


@pytest.mark.parametrize("wrong", ["too large", "endless", "too slow"])
def test_a_server_that_sends_too_much_or_too_little(place, server, monkeypatch, wrong):
    """The next mirror is asked, and the disk is not filled."""
    path = place(NAMES, b"ada\nbob")
    right = cache.FILES[NAMES]
    other = Server()
    other.files["names.txt"] = b"e" * (10**6 if wrong != "too slow" else 7)
    other.endless, other.pause = wrong == "endless", 0.2 if wrong == "too slow" else 0
    monkeypatch.setattr(cache, "PATIENCE", 0.3 if wrong == "too slow" else 60)
    try:
        for urls in ((other.url + "names.txt",), (other.url + "names.txt", *right.urls)):
            monkeypatch.setitem(cache.FILES, NAMES, right._replace(urls=urls))
            if len(urls) == 1:
                said = (
                    r"too slow: [0-9] bytes in [0-9]" if other.pause else r"more than the 7 bytes"
                )
                with pytest.raises(OSError, match=rf"names\.txt is missing .*{said}"):
                    datasets.names()
                assert sum(file.stat().st_size for file in path.parent.iterdir()) < 7
            else:
                assert datasets.names() == ["ada", "bob"]
    finally:
        other.endless, other.pause = False, 0
        other.http.shutdown()
        other.http.server_close()
    assert [file.name for file in path.parent.iterdir()] == ["names.txt"]


def test_a_slow_download_that_goes_on_is_let_be(place, server, monkeypatch):
    """Its pace is that of the whole download, over all of its connections."""
    clock = iter(range(0, 10_000, 40))  # 40 seconds a piece
    monkeypatch.setattr(cache.time, "monotonic", lambda: next(clock))
    place(NAMES, b"x" * 4_000_000)
    server.cuts = [1_000_000] * 4
    monkeypatch.setattr(cache, "SLOWEST", 1)
    assert len(datasets.names()[0]) == 4_000_000


def test_files_asked_for_at_once_are_downloaded_once(place, server):
    """Threads stand for processes: each opens the lock for itself."""
    path = place(NAMES, b"ada\nbob\n" * 5)
    server.pause = 0.01
    with ThreadPoolExecutor(6) as pool:
        read = list(pool.map(lambda _: datasets.names(), range(6)))
    assert read == [["ada", "bob"] * 5] * 6
    assert len(server.requests) == 1
    assert [file.name for file in path.parent.iterdir()] == ["names.txt"]


def test_no_more_is_unpacked_than_the_file_has(place, server):
    """A gzip file of 8 KB that unpacks to 8 MB: in the folder, and from the server."""
    path = place_mnist(place)[0]
    bomb = gzip.compress(bytes(9_000_000), 9)[:8000]
    path.parent.mkdir(parents=True)
    path.write_bytes(bomb)
    server.files[path.name] = bomb
    tracemalloc.start()
    with (
        pytest.warns(UserWarning, match="corrupt"),
        pytest.raises(OSError, match="two downloads did not have the sha256"),
    ):
        datasets.mnist("test")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3_000_000
    with open(path, "wb") as file:
        file.truncate(2**40)  # a terabyte, and no byte on the disk
    with pytest.warns(UserWarning, match="corrupt"), pytest.raises(OSError, match="two downloads"):
        datasets.mnist("test")


def test_what_is_no_file_is_refused(place):
    path = place(NAMES, b"ada")
    path.parent.mkdir(parents=True)
    os.mkfifo(path)
    with pytest.raises(ValueError, match=r"names\.txt is a FIFO, expected a regular file"):
        datasets.names()


# --- images -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "folder"),
    [(datasets.mnist, "mnist"), (datasets.fashion_mnist, "fashion-mnist")],
)
@pytest.mark.parametrize(("split", "part"), [("train", "train"), ("test", "t10k")])
def test_mnist_and_fashion_mnist(place, function, folder, split, part):
    place_mnist(place, folder, part)
    x, labels = function(split)
    assert (x.dtype, labels.dtype) == (np.float32, np.int32)
    np.testing.assert_array_equal(x, (IMAGES.astype(np.float32) / 255)[..., None])
    np.testing.assert_array_equal(labels, LABELS)
    assert fnn.dense(fnn.dense_init(jax.random.key(0), 784, 2), x.reshape(5, -1)).shape == (5, 2)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, jnp.bfloat16, np.float16, np.uint8])
def test_dtypes(place, dtype):
    place_mnist(place)
    x = datasets.mnist("test", dtype=dtype)[0]
    assert x.dtype == dtype
    exact = IMAGES[..., None] / (1 if dtype == np.uint8 else 255)
    tolerance = 0 if dtype == np.uint8 else float(jnp.finfo(dtype).eps) / 2
    np.testing.assert_allclose(x.astype(np.float64), exact, rtol=tolerance)


def cifar_archive(**others):
    rng = np.random.default_rng(1)
    parts = {f"data_batch_{i}": 3 for i in range(1, 6)} | {"test_batch": 2}
    rows = {name: rng.integers(0, 256, (n, 3073), dtype=np.uint8) for name, n in parts.items()}
    members = {f"cifar-10-batches-bin/{n}.bin": r.tobytes() for n, r in rows.items()} | others
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for name, content in members.items():
            if content is not None:
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return file.getvalue(), rows


def test_cifar10_reads_planes_as_channels(place):
    archive, rows = cifar_archive()
    place("cifar-10/cifar-10-binary.tar.gz", archive)
    x, labels = datasets.cifar10("test", dtype=np.uint8)
    assert (x.shape, x.flags.c_contiguous) == ((2, 32, 32, 3), True)
    for row in range(2):
        assert labels[row] == rows["test_batch"][row, 0]
        for h, w, c in [(0, 0, 0), (0, 1, 0), (1, 0, 2), (31, 30, 1)]:
            assert x[row, h, w, c] == rows["test_batch"][row, 1 + 1024 * c + 32 * h + w]
    x, labels = datasets.cifar10()
    assert (x.shape, x.dtype, x.flags.c_contiguous) == ((15, 32, 32, 3), np.float32, True)
    expected = np.concatenate([rows[f"data_batch_{i}"][:, 0] for i in range(1, 6)])
    np.testing.assert_array_equal(labels, expected)


def test_an_archive_writes_nowhere(place, tmp_path):
    archive, _ = cifar_archive(**{"../evil": b"evil", f"{tmp_path}/evil": b"evil"})
    path = place("cifar-10/cifar-10-binary.tar.gz", archive)
    before = set(tmp_path.rglob("*")) | set(tmp_path.parent.glob("*"))
    datasets.cifar10("test")
    after = set(tmp_path.rglob("*")) | set(tmp_path.parent.glob("*"))
    assert after - before == {tmp_path / "data", path.parent, path}


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"cifar-10-batches-bin/test_batch.bin": None}, r"cifar10: the archive has no file .*test"),
        (
            {"cifar-10-batches-bin/test_batch.bin": b"ab"},
            r"test_batch\.bin: 2 bytes, expected a mult",
        ),
    ],
)
def test_an_archive_that_is_another(place, others, message):
    place("cifar-10/cifar-10-binary.tar.gz", cifar_archive(**others)[0])
    with pytest.raises(ValueError, match=message):
        datasets.cifar10("test")


@pytest.mark.parametrize("shape", [(), (0,), (3,), (0, 2), (2, 3, 4), (1, 2, 3, 1)])
def test_parse_idx(shape):
    array = np.arange(np.prod(shape, dtype=int), dtype=np.uint8).reshape(shape)
    np.testing.assert_array_equal(parse_idx("it", idx(array)), array)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"it: starts with b'', expected"),
        (b"\0\0\x0d\x01\0\0\0\0", r"it: starts with .*, expected 0, 0, 8, rank"),
        (b"<html>", "it: starts with b'<htm'"),
        (idx(IMAGES)[:10], "it: 10 bytes, expected 16 of header"),
        (idx(IMAGES)[:-1], r"it: 3919 bytes of data, expected shape \(5, 28, 28\)"),
        (idx(IMAGES) + b"\0", r"it: 3921 bytes of data, expected"),
        (b"\0\0\x08\x01\xff\xff\xff\xff", r"expected shape \(-1,\)"),
        (b"\0\0\x08\x04" + b"\x7f\xff\xff\xff" * 4, r"it: 0 bytes of data, expected shape"),
    ],
)
def test_parse_idx_of_what_is_none(content, message):
    with pytest.raises(ValueError, match=message):
        parse_idx("it", content)


def test_images_without_their_labels(place):
    place_mnist(place)
    place("mnist/t10k-labels-idx1-ubyte.gz", gzip.compress(idx(LABELS[:4])))
    with pytest.raises(ValueError, match=r"mnist: images have shape \(5, 28, 28\), labels \(4,\)"):
        datasets.mnist("test")


def test_misspelt_splits_and_types():
    for function in (datasets.mnist, datasets.fashion_mnist, datasets.cifar10):
        name = function.__name__
        with pytest.raises(ValueError, match=f"{name}: split is 'tset', expected 'train' or"):
            function("tset")
        for dtype in (np.int32, bool, complex):
            with pytest.raises(TypeError, match=rf"{name}: dtype is .*, expected floating point"):
                function("test", dtype=dtype)


# --- text ---------------------------------------------------------------------------------------


def test_encode_and_decode():
    vocabulary = datasets.vocabulary("to be, or not")
    assert vocabulary == " ,benort"
    ids = datasets.encode("not to be", vocabulary)
    assert ids.dtype == np.int32
    assert ids.tolist() == [4, 5, 7, 0, 7, 5, 0, 2, 3]
    assert datasets.decode(ids, vocabulary) == "not to be"
    assert datasets.decode(jnp.asarray(ids), vocabulary) == "not to be"
    assert datasets.decode([4, 5], vocabulary) == "no"
    assert datasets.encode("", vocabulary).shape == (0,)
    assert datasets.decode([], vocabulary) == ""
    assert datasets.vocabulary(["ada", "bob"]) == "abdo"
    assert datasets.decode(datasets.encode("né 🙂", "🙂 né"), "🙂 né") == "né 🙂"


def test_errors_of_encode_and_decode():
    with pytest.raises(ValueError, match=r"encode: \['x', 'y'\] are not in the vocabulary 'ab'"):
        datasets.encode("yax", "ab")
    with pytest.raises(ValueError, match="encode: 'a' is in the vocabulary twice"):
        datasets.encode("a", "aba")
    for ids in ([-1], [0, 2]):
        with pytest.raises(ValueError, match=r"decode: ids from .*, expected 0 to 1"):
            datasets.decode(ids, "ab")
    large = "".join(map(chr, range(20_000)))
    with pytest.raises(ValueError, match=r"not in the vocabulary .* \(20000 characters\)") as error:
        datasets.encode("".join(map(chr, range(20_000, 40_000))), large)
    assert len(str(error.value)) < 400
    for ids in (np.zeros((2, 3), int), np.zeros(3), np.array(5)):
        with pytest.raises(
            ValueError, match=r"decode: ids are .*, expected int \[characters\]; dec"
        ):
            datasets.decode(ids, large)
    assert datasets.decode(np.array([1, 0], np.uint64), "ab") == "ba"
    assert datasets.decode([], "ab") == ""


# --- what is real -------------------------------------------------------------------------------


def real(*names):
    beside = Path(__file__).resolve().parents[3] / "shared" / "data"
    for folder in filter(None, (os.environ.get("FNN_DATA"), beside)):
        if all((Path(folder) / name).exists() for name in names):
            return str(folder)
    pytest.skip(f"needs {', '.join(names)} in FNN_DATA or ../shared/data")


def test_the_real_mnist(monkeypatch):
    part = "mnist/t10k-{}-ubyte.gz"
    monkeypatch.setenv("FNN_DATA", real(part.format("images-idx3"), part.format("labels-idx1")))
    x, labels = datasets.mnist("test")
    assert (x.shape, x.dtype) == ((10_000, 28, 28, 1), np.float32)
    assert (x.min(), x.max()) == (0, 1)
    counts = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert np.bincount(labels).tolist() == counts
    assert labels[:5].tolist() == [7, 2, 1, 0, 4]


def test_the_real_texts(monkeypatch):
    monkeypatch.setenv("FNN_DATA", real("text/tinyshakespeare.txt", NAMES))
    text, names = datasets.shakespeare(), datasets.names()
    assert text.startswith("First Citizen:\nBefore we proceed any further, hear me speak.")
    assert (len(text), len(datasets.vocabulary(text))) == (1_115_394, 65)
    assert (len(names), names[:2]) == (32_033, ["emma", "olivia"])
    assert datasets.vocabulary(names) == "abcdefghijklmnopqrstuvwxyz"


def test_digits_are_in_the_package():
    data = datasets.digits()
    assert [len(labels) for _, labels in data] == [1077, 360, 360]


def test_synthetic_sets_are_here_too():
    for name in ("spirals", "rings", "clusters", "moons", "xor"):
        assert getattr(datasets, name) is getattr(fnn.data, name)
