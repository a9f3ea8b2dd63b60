import functools
import gc
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
import weakref

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import fnn
from fnn.data import permutation
from fnn.training import stream

KEY = jax.random.key(0)
X = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
LABELS = (X[:, 0] > 0).astype(np.int32)


class Table:
    """What looks like an array to NumPy and is none, as a DataFrame."""

    shape = (4, 3)

    def __array__(self, dtype=None, copy=None):
        return X[:4]

    def to_numpy(self):
        return X[:4]


def batches_of(size, rows=50):
    return [(X[i : i + size], LABELS[i : i + size]) for i in range(0, rows, size)]


def loss_fn(params, batch, key):
    x, labels = batch
    return fnn.cross_entropy(fnn.dense(params, fnn.dropout(key, x, 0.3)), labels)


def squares(params, batch, key):
    return jnp.sum(fnn.dense(params, batch[0]) ** 2, axis=-1)


OPTIMIZER = fnn.momentum(0.1)
STEP = fnn.make_train_step(loss_fn, OPTIMIZER)
PLAIN_STEP = fnn.make_train_step(squares, OPTIMIZER)


def fresh():
    return STEP.init(fnn.dense_init(KEY, 3, 2))


def cheap(ts, batch, key, mask=None):
    """A step of one's own, for tests of what is around a step: it compiles at once."""
    weights = jnp.ones(len(batch[0])) if mask is None else mask.astype(jnp.float32)
    moved = ts.params["b"] + (weights @ batch[0].astype(jnp.float32))[:2] / weights.sum()
    new = ts._replace(params=ts.params | {"b": moved}, step=ts.step + 1)
    return new, {"loss": moved.sum()}


class Counter:
    """A source that can stand anywhere, as Grain's: batches of rows drawn from its number."""

    def __init__(self, stop=100, as_bytes=False):
        self.place, self.stop, self.as_bytes = 0, stop, as_bytes

    def __iter__(self):
        return self

    def __next__(self):
        if self.place == self.stop:
            raise StopIteration
        self.place += 1
        rows = np.random.default_rng(self.place).permutation(50)[:10]
        return X[rows], LABELS[rows]

    def get_state(self):
        state = {"place": np.int64(self.place), "list": np.arange(2)}
        return json.dumps({"place": self.place}).encode() if self.as_bytes else state

    def set_state(self, state):
        assert isinstance(state, bytes) == self.as_bytes
        self.place = int((json.loads(state) if self.as_bytes else state)["place"])


def wait_for(condition):
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.005)
    raise AssertionError("it did not happen within 30 s")


# --- prefetch -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 100])
def test_prefetch_gives_the_same_batches(size):
    batches = [{"x": X[:n], "n": np.int32(n), "none": None} for n in (4, 4, 0, 7)]
    ahead = stream.prefetch(batches, size)
    came = list(ahead)
    for got, given in zip(came, batches, strict=True):
        assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(got))
        chex.assert_trees_all_equal(got, given)
        chex.assert_trees_all_equal_shapes_and_dtypes(got, given)
    assert list(ahead) == []
    assert list(stream.prefetch([])) == []


def test_prefetch_reads_ahead_no_more_than_it_says():
    read = []
    ahead = stream.prefetch((read.append(i) or np.zeros(i) for i in range(50)), size=3)
    assert read == []
    next(ahead)
    wait_for(lambda: len(read) == 1 + 3 + 1)  # handed out, waiting, in hand
    time.sleep(0.05)
    assert len(read) == 5
    next(ahead)
    wait_for(lambda: len(read) == 6)
    ahead.close()


def test_a_source_may_fill_its_buffer_again():
    buffer = np.zeros(1 << 16, np.float32)  # large enough for a device that shares memory

    def source():
        for i in range(20):
            buffer[:] = i
            yield buffer

    came = list(stream.prefetch(source(), size=20))
    assert [float(batch[0]) for batch in came] == list(range(20))
    assert all(bool((batch == batch[0]).all()) for batch in came)


@pytest.mark.parametrize("put", [jax.device_put, jnp.asarray])
def test_a_source_may_fill_the_buffer_of_an_array_again(put):
    memory = np.zeros((1 << 16) + 16, np.float32)
    start = -memory.ctypes.data % 64 // 4  # where a CPU device shares the memory
    buffer = memory[start : start + (1 << 16)]

    def source():
        for i in range(5):
            buffer[:] = i
            yield put(buffer)

    ahead = stream.prefetch(source(), size=5)
    first = next(ahead)
    wait_for(lambda: len(ahead._reader.ready) == 4)  # the buffer holds the last
    assert [float(batch[0]) for batch in (first, *ahead)] == list(range(5))


def test_all_who_take_from_one_prefetch_come_to_an_end():
    def source():
        yield from (np.full(1, i) for i in range(20))
        raise KeyError("the source")

    for ending in ("the end", "an error", "close"):
        ahead = stream.prefetch(itertools.islice(source(), 20) if ending == "the end" else source())
        if ending == "close":
            ahead = stream.prefetch(iter(threading.Event().wait, None))  # nothing ever comes
        came, errors = [], []

        def take(ahead=ahead, came=came, errors=errors):
            try:
                came.extend(int(batch[0]) for batch in ahead)
            except KeyError as error:
                errors.append(error)

        takers = [threading.Thread(target=take, daemon=True) for _ in range(3)]
        for taker in takers:
            taker.start()
        if ending == "close":
            ahead._reader.close(0.1)
        for taker in takers:
            taker.join(5)
        assert not any(taker.is_alive() for taker in takers)
        assert sorted(came) == ([] if ending == "close" else list(range(20)))
        assert len(errors) == (ending == "an error")


def test_the_source_error_comes_where_its_batch_would_have():
    def source():
        yield np.zeros(1)
        yield np.ones(1)
        raise KeyError("the third")

    ahead = stream.prefetch(source())
    assert [float(next(ahead)[0]), float(next(ahead)[0])] == [0, 1]
    with pytest.raises(KeyError, match="the third") as error:
        next(ahead)
    assert 'raise KeyError("the third")' in "".join(traceback.format_tb(error.tb))
    assert list(ahead) == []
    wait_for(lambda: not ahead._reader.thread.is_alive())


def test_a_batch_that_is_no_numbers_is_an_error_here():
    for batch, message in (
        (np.array(["text"]), "array of dtype <U4, expected numbers or bools"),
        (np.ma.array([1.0], mask=[True]), "a masked array"),
        (np.array([2**40]), "the number 1099511627776"),
    ):
        with pytest.raises((TypeError, ValueError), match=f"prefetch: batches .*{message}"):
            next(stream.prefetch([batch]))


@pytest.mark.parametrize("taken", [0, 1, 5])
@pytest.mark.parametrize("how", ["close", "drop"])
def test_the_thread_stops(taken, how):
    before = threading.active_count()
    ahead = stream.prefetch((np.zeros(3) for _ in iter(int, 1)), size=2)
    for _ in range(taken):
        next(ahead)
    assert threading.active_count() == before + (taken > 0)
    if how == "close":
        ahead.close()
        assert list(ahead) == []
        ahead.close()
    gone = weakref.ref(ahead)
    del ahead
    gc.collect()
    assert gone() is None
    wait_for(lambda: threading.active_count() == before)


def test_nothing_is_read_after_close():
    source = Counter()
    ahead = stream.prefetch(source)
    next(ahead)
    ahead.close()
    place = source.place
    assert place <= 4
    time.sleep(0.05)
    assert source.place == place


def test_a_program_ends_in_the_middle_of_its_batches():
    code = (
        "import fnn, numpy as np, itertools\n"
        "ahead = fnn.training.prefetch(np.zeros(1000) for _ in itertools.count())\n"
        "for _ in range(5): next(ahead)\n"
        "print('end')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "")


def test_prefetch_follows_the_settings_of_its_caller():
    batch = np.zeros(2)
    with jax.enable_x64(True):
        assert next(stream.prefetch([batch])).dtype == jnp.float64
    assert next(stream.prefetch([batch])).dtype == jnp.float32
    device = jax.devices()[3]
    with jax.default_device(device):
        assert next(stream.prefetch([batch])).devices() == {device}


def test_prefetch_shards():
    mesh = Mesh(jax.devices(), ("data",))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    batch = next(stream.prefetch([(X[:16], LABELS[:16])], sharding=sharding))
    for leaf in batch:
        assert leaf.sharding == sharding
        assert leaf.addressable_shards[0].data.shape[0] == 2
    with pytest.raises(ValueError, match="partitioned 8 times"):
        next(stream.prefetch([X[:15]], sharding=sharding))


def test_prefetch_of_size_zero():
    with pytest.raises(ValueError, match="prefetch: size is 0, expected at least 1"):
        stream.prefetch([], 0)
    with pytest.raises(TypeError, match=r"prefetch: size is 2\.5, expected a whole number >= 1"):
        stream.prefetch([], 2.5)


# --- train_on_batches ---------------------------------------------------------------------------


compiled = functools.cache(jax.jit)  # once for all tests with the same step


def by_hand(step, batches):
    """What it should be: the step, once per batch of whatever size, without a mask."""
    ts, losses, step = fresh(), [], compiled(step)
    for batch in batches:
        ts, metrics = step(ts, batch, KEY)
        losses.append(float(metrics["loss"]))
    return ts, np.array(losses, np.float32)


def test_it_is_the_loop_over_the_step():
    ts, history = fnn.train_on_batches(STEP, fresh(), batches_of(10), KEY)
    expected, losses = by_hand(STEP, batches_of(10))
    chex.assert_trees_all_close(ts, expected, rtol=1e-5, atol=1e-6)
    assert set(history) == {"loss", "grad_norm", "nonfinite", "learning_rate"}
    for values in history.values():
        assert isinstance(values, np.ndarray)
        assert values.shape == (5,)
    np.testing.assert_allclose(history["loss"], losses, rtol=1e-5)
    assert history["nonfinite"].tolist() == [-1] * 5


def test_it_is_fit_on_the_same_batches():
    """The rows in fit's order, 50 in batches of 16, so that the last has 2."""
    fit = jax.jit(lambda ts: fnn.fit(STEP, ts, (X, LABELS), KEY, epochs=2, batch_size=16))
    expected, epochs = fit(fresh())
    shuffle_key, step_key = jax.random.split(KEY)

    def source():
        for epoch in range(2):
            order = np.asarray(permutation(jax.random.fold_in(shuffle_key, epoch), 50))
            for i in range(0, 50, 16):
                yield X[order[i : i + 16]], LABELS[order[i : i + 16]]

    ts, history = fnn.train_on_batches(STEP, fresh(), source(), step_key)
    chex.assert_trees_all_close(ts, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(history["loss"], epochs["loss"].reshape(-1), rtol=1e-5)


def test_the_tail_counts_and_compiles_nothing():
    traces = []

    def traced(params, batch, key):
        traces.append(batch[0].shape)
        return squares(params, batch, key)

    step = fnn.make_train_step(traced, OPTIMIZER)
    ts, history = fnn.train_on_batches(step, fresh(), batches_of(16), KEY)
    again, _ = fnn.train_on_batches(step, ts, batches_of(16), KEY)
    assert set(traces) == {(16, 3)}
    assert len(traces) == 1
    assert int(again.step) == 8
    expected, losses = by_hand(PLAIN_STEP, batches_of(16))
    chex.assert_trees_all_close(ts, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(history["loss"], losses, rtol=1e-5)


def test_one_compilation_on_one_and_on_many_devices():
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, _, **__: compiled.append(event) if "backend_compile" in event else None
    )
    sharding = NamedSharding(Mesh(jax.devices(), ("data",)), PartitionSpec("data"))
    counts, results = [], []
    try:
        for placed in (None, sharding):
            # The first of the two compiles how ts is copied, too.
            for step in (
                lambda *arguments: cheap(*arguments),
                lambda *arguments: cheap(*arguments),
            ):
                ts, before = fresh(), len(compiled)
                for _ in range(2):
                    ts, _ = fnn.train_on_batches(step, ts, batches_of(16), KEY, sharding=placed)
                counts.append(len(compiled) - before)
            results.append(jax.device_get(ts))
    finally:
        jax.monitoring.clear_event_listeners()
    assert counts[1::2] == [1, 1]
    chex.assert_trees_all_close(*results, rtol=1e-4, atol=1e-5)
    assert jax.tree.leaves(ts.params)[0].sharding.device_set == set(jax.devices())


def test_the_tail_is_dropped_if_asked():
    batches = [*batches_of(10)[:4], (X[40:45], LABELS[40:45])]
    ts, history = fnn.train_on_batches(STEP, fresh(), batches, KEY, tail="drop")
    expected, losses = by_hand(STEP, batches[:4])
    chex.assert_trees_all_close(ts, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(history["loss"], losses, rtol=1e-5)
    mean = fnn.make_train_step(lambda *arguments: loss_fn(*arguments).mean(), OPTIMIZER)
    chex.assert_trees_all_close(
        fnn.train_on_batches(mean, fresh(), batches, KEY, tail="drop")[0], expected,
        rtol=1e-5, atol=1e-6,
    )  # fmt: skip


def test_what_the_user_holds_stays():
    ts, before = fresh(), jax.device_get(fresh())  # not of ts: who looks at a buffer, keeps it
    device_batches = jax.tree.map(jnp.asarray, batches_of(16))
    sharding = NamedSharding(Mesh(jax.devices(), ("data",)), PartitionSpec("data"))
    for placed in (None, sharding):
        fnn.train_on_batches(cheap, ts, device_batches, KEY, sharding=placed)
        assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((ts, device_batches, KEY)))
    chex.assert_trees_all_equal(ts, before)
    chex.assert_trees_all_equal(device_batches, batches_of(16))
    assert jax.random.key_data(KEY).tolist() == [0, 0]
    host, _ = fnn.train_on_batches(cheap, before, batches_of(16), KEY)  # NumPy leaves
    chex.assert_trees_all_equal(host, fnn.train_on_batches(cheap, ts, batches_of(16), KEY)[0])


def test_each_step_overwrites_the_state_of_the_last(monkeypatch):
    given, real = [], jax.jit

    def spying_jit(step, **options):
        run = real(step, **options)
        return lambda ts, *rest: given.append(ts) or run(ts, *rest)

    monkeypatch.setattr(jax, "jit", spying_jit)
    fnn.train_on_batches(cheap, fresh(), batches_of(16), KEY)
    assert len(given) == 4
    assert all(ts.params["b"].is_deleted() for ts in given)


def test_aliased_leaves_and_keys_in_the_state():
    zeros = jnp.zeros(3)
    state = {"a": zeros, "b": zeros, "key": KEY}

    def with_state(params, state, batch, key):
        return loss_fn(params, batch, key), state | {"a": state["a"] + 1}

    step = fnn.make_train_step(with_state, OPTIMIZER)
    ts = step.init(fnn.dense_init(KEY, 3, 2), state)
    ts, _ = fnn.train_on_batches(step, ts, batches_of(10), KEY)
    assert ts.state["a"].tolist() == [5, 5, 5]
    assert ts.state["b"].tolist() == [0, 0, 0]


def test_metrics_are_fetched_in_chunks(monkeypatch):
    fetched, real = [], jax.device_get
    monkeypatch.setattr(jax, "device_get", lambda tree: fetched.append(len(tree)) or real(tree))
    monkeypatch.setattr(stream, "_CHUNK", 20)
    _, history = fnn.train_on_batches(cheap, fresh(), Counter(70), KEY)
    assert fetched == [20, 20, 20, 10]
    assert len(history["loss"]) == 70
    monkeypatch.undo()
    _, at_once = fnn.train_on_batches(cheap, fresh(), Counter(70), KEY)
    chex.assert_trees_all_equal(history, at_once)


def test_steps_bounds_the_run_and_what_is_read():
    source = Counter()
    ts, history = fnn.train_on_batches(cheap, fresh(), source, KEY, steps=7)
    assert (int(ts.step), len(history["loss"]), source.place) == (7, 7, 7)
    ts, history = fnn.train_on_batches(cheap, ts, Counter(3), KEY, steps=7)
    assert (int(ts.step), len(history["loss"])) == (10, 3)


def test_a_step_that_is_not_finite_is_skipped_and_told():
    batches = batches_of(10)
    batches[2] = (np.full((10, 3), np.nan, np.float32), batches[2][1])
    ts, history = fnn.train_on_batches(STEP, fresh(), batches, KEY)
    assert (history["nonfinite"] >= 0).tolist() == [False, False, True, False, False]
    with pytest.raises(FloatingPointError, match=r"^step 2: the input is not finite"):
        fnn.check_finite(history, ts.params)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(ts.params))


def test_bad_rows_of_the_tail_stay_there():
    batches = jax.tree.map(np.copy, batches_of(16))
    batches[3][0][0] = np.nan
    ts, history = fnn.train_on_batches(STEP, fresh(), batches, KEY)
    assert (history["nonfinite"] >= 0).tolist() == [False, False, False, True]
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(ts.params))


def test_all_batches_may_be_smaller_than_batch_size():
    ts, history = fnn.train_on_batches(cheap, fresh(), batches_of(16), KEY, batch_size=32)
    expected, losses = by_hand(cheap, batches_of(16))
    np.testing.assert_allclose(history["loss"], losses, rtol=1e-5)
    chex.assert_trees_all_close(ts, expected, rtol=1e-5, atol=1e-6)


def test_optax_and_x64():
    with jax.enable_x64(True):
        step = fnn.make_train_step(loss_fn, optax.sgd(0.1))
        ts = step.init(fnn.dense_init(KEY, 3, 2))
        batches = [(x.astype(np.float64), labels) for x, labels in batches_of(16)]
        ts, history = fnn.train_on_batches(step, ts, batches, KEY)
        chex.assert_type(jax.tree.leaves(ts.params), jnp.float64)
        assert history["loss"].dtype == np.float64


@pytest.mark.parametrize(
    ("batches", "options", "message"),
    [
        ([(X[:4], LABELS[:4]), (X[:5], LABELS[:5])], {}, "a batch has 5 rows, more than 4, the"),
        (batches_of(10), {"batch_size": 8}, "a batch has 10 rows, more than 8, the batch_size"),
        ([(X[:4], LABELS[:4]), (X[:4, :2], LABELS[:4])], {}, r"rows are \[\(\(2,\), 'float32'\)"),
        ([(X, LABELS), (X.astype("float64"), LABELS)], {}, r"rows are \[\(\(3,\), 'float64'\)"),
        ([(X[:4], LABELS[:3])], {}, "train_on_batches: data have shapes"),
        ([(X[:0], LABELS[:0])], {}, "train_on_batches: data have no rows"),
        ([], {}, "no batch came; a generator gives its batches only once"),
        ([(X[:4], LABELS[:4])], {"batch_size": 5, "tail": "drop"}, "no batch came"),
        ([], {"steps": 0}, "steps is 0, expected at least 1"),
        ([], {"tail": "cut"}, "tail is 'cut', expected 'pad' or 'drop'"),
        ([], {"size": 0}, "prefetch: size is 0"),
        ([(Table(), LABELS[:4])], {}, "train_on_batches: data .* a Table"),
        ([], {"steps": 2.5}, r"steps is 2\.5, expected a whole number >= 1"),
        ([], {"batch_size": 16.0}, r"batch_size is 16\.0, expected a whole number >= 1"),
        (
            [(X, LABELS), {"x": X, "y": LABELS}],
            {},
            r"a batch is PyTreeDef\(\{'x': \*, 'y': \*\}\), but the first batch was PyTreeDef\(\(",
        ),
    ],
)
def test_errors(batches, options, message):
    before = threading.active_count()
    with pytest.raises((ValueError, TypeError), match=message):
        fnn.train_on_batches(cheap, fresh(), batches, KEY, **options)
    wait_for(lambda: threading.active_count() == before)


def test_an_error_of_the_step_stops_the_thread():
    def broken(ts, batch, key, mask=None):
        raise RuntimeError("broken")

    before = threading.active_count()
    with pytest.raises(RuntimeError, match="broken"):
        fnn.train_on_batches(broken, fresh(), Counter(), KEY)
    assert threading.active_count() == before


def test_a_seed_for_a_key():
    with pytest.raises(TypeError, match=r"^train_on_batches: key is int, expected a key like"):
        fnn.train_on_batches(cheap, fresh(), batches_of(10), 0)


def test_it_is_not_for_jit_or_vmap():
    def run(key):
        return fnn.train_on_batches(cheap, fresh(), batches_of(10), key)[0]

    for under in (jax.jit(run), jax.vmap(run)):
        with pytest.raises(
            TypeError, match=r"^train_on_batches: ts or key is traced, but train_on"
        ):
            under(jax.random.split(KEY, 2))


def test_numpy_scalars_are_numbers():
    numbers = {"steps": np.int64(2), "batch_size": np.uint8(10), "size": np.int16(1)}
    ts, _ = fnn.train_on_batches(cheap, fresh(), batches_of(10), KEY, **numbers)
    assert int(ts.step) == 2


# --- signals ------------------------------------------------------------------------------------


class Signals(Counter):
    """A source that sends signals to the process when it makes batch `at`; then it may be stuck."""

    def __init__(self, *numbers, at, stuck=None):
        super().__init__(10**6)
        self.numbers, self.at, self.stuck = numbers, at, stuck

    def __next__(self):
        batch = super().__next__()
        if self.place == self.at:
            for number in self.numbers:
                os.kill(os.getpid(), number)
                time.sleep(0.1)
            if self.stuck is not None:
                self.stuck.wait()
        return batch


@pytest.fixture
def let_go():
    """An event for sources that are stuck; afterwards all is as if no signal had come."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    threads, event = threading.active_count(), threading.Event()
    yield event
    event.set()
    wait_for(lambda: threading.active_count() == threads)
    assert before == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_and_what_was_trained_comes_back(number, let_go, capsys, monkeypatch):
    source = Signals(number, at=6)
    ts, history = fnn.train_on_batches(cheap, fresh(), source, KEY)
    done = int(ts.step)
    assert 6 <= done <= 100
    assert source.place == done  # the position of the source is that of the run
    assert len(history["loss"]) == done
    assert capsys.readouterr().err == f"train_on_batches: interrupted after {done} steps\n"
    monkeypatch.setattr("fnn._base._terminal._terminated", False)
    expected, _ = fnn.train_on_batches(cheap, fresh(), Counter(), KEY, steps=done)
    chex.assert_trees_all_equal(ts, expected)


def test_a_signal_while_the_source_is_stuck(let_go):
    ts, history = fnn.train_on_batches(
        cheap, fresh(), Signals(signal.SIGINT, at=4, stuck=let_go), KEY
    )
    assert (int(ts.step), len(history["loss"])) == (3, 3)


def test_a_signal_before_the_first_batch(let_go):
    ts, history = fnn.train_on_batches(
        cheap, fresh(), Signals(signal.SIGINT, at=1, stuck=let_go), KEY
    )
    assert (int(ts.step), history) == (0, {})


def test_a_second_ctrl_c_ends_it_at_once(let_go):
    with pytest.raises(KeyboardInterrupt):
        fnn.train_on_batches(
            cheap, fresh(), Signals(signal.SIGINT, signal.SIGINT, at=3, stuck=let_go), KEY
        )


def test_sigterm_is_put_off_until_the_program_is_through():
    """No loop starts again. The source is stuck, and the end of Python does not wait for it."""
    code = (
        "import os, signal, threading\n"
        "import jax, numpy as np\n"
        "import fnn\n"
        "def source():\n"
        "    yield np.ones(2)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    threading.Event().wait()\n"
        "step = lambda ts, batch, key, mask: (ts + 1, {'loss': ts})\n"
        "for _ in range(2):\n"
        "    ts, _ = fnn.train_on_batches(step, 0.0, source(), jax.random.key(0))\n"
        "    print(ts, end=' ')\n"
        "print('through')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == -signal.SIGTERM, done.stderr
    assert done.stdout == "1.0 0.0 through\n"


# --- going on -----------------------------------------------------------------------------------


@pytest.mark.parametrize("as_bytes", [True, False])
def test_a_run_goes_on_bit_for_bit(as_bytes):
    whole, losses = fnn.train_on_batches(STEP, fresh(), Counter(), KEY, steps=10)
    source = Counter(as_bytes=as_bytes)
    half, first = fnn.train_on_batches(STEP, fresh(), source, KEY, steps=6)
    saved = json.loads(json.dumps({"position": stream.get_position(source)}))
    source = Counter(as_bytes=as_bytes)
    stream.set_position(source, saved["position"])
    ts, second = fnn.train_on_batches(STEP, jax.device_get(half), source, KEY, steps=4)
    chex.assert_trees_all_equal(ts, whole)
    np.testing.assert_array_equal(np.append(first["loss"], second["loss"]), losses["loss"])


def test_a_run_may_stop_just_before_a_small_batch():
    batches = batches_of(16) * 2
    whole, _ = fnn.train_on_batches(cheap, fresh(), batches, KEY)
    ts, _ = fnn.train_on_batches(cheap, fresh(), batches[:3], KEY)
    with pytest.raises(ValueError, match="a batch has 16 rows, more than 2, the"):
        fnn.train_on_batches(cheap, ts, batches[3:], KEY)
    ts, _ = fnn.train_on_batches(cheap, ts, batches[3:], KEY, batch_size=16)
    chex.assert_trees_all_equal(ts, whole)


def test_position_counts_what_was_handed_out():
    source = Counter()
    ahead = stream.prefetch(source, 5)
    assert json.loads(stream.get_position(ahead)) == {"place": 0, "list": [0, 1]}
    for _ in range(3):
        next(ahead)
    wait_for(lambda: source.place == 9)
    assert json.loads(stream.get_position(ahead))["place"] == 3
    again = stream.prefetch(Counter())
    stream.set_position(again, stream.get_position(ahead))
    chex.assert_trees_all_equal(next(again), next(ahead))
    with pytest.raises(ValueError, match="set the position before the first batch"):
        stream.set_position(again, stream.get_position(ahead))
    ahead.close()
    again.close()


def test_position_after_an_error_of_the_first_batch():
    source = Counter(0)
    ahead = stream.prefetch(source)
    assert list(ahead) == []
    assert json.loads(stream.get_position(ahead))["place"] == 0


def test_a_prefetched_source_stops_where_the_run_does():
    ahead = stream.prefetch(Counter())
    fnn.train_on_batches(cheap, fresh(), ahead, KEY, steps=4)
    assert json.loads(stream.get_position(ahead))["place"] == 4
    ahead.close()


def test_position_of_what_has_none():
    generator = (batch for batch in batches_of(10))
    for call in (
        lambda: stream.get_position(generator),
        lambda: stream.set_position(generator, "{}"),
        lambda: stream.get_position(stream.prefetch(generator)),
    ):
        with pytest.raises(TypeError, match=r"(generator|list_iterator) has no get_state and"):
            call()
    odd = Counter()
    odd.get_state = lambda: {"odd": {1, 2}}
    with pytest.raises(
        TypeError, match="get_position: the state holds a set, expected what JSON can hold"
    ):
        stream.get_position(odd)


def grain_iterator(kind):
    grain = pytest.importorskip("grain")
    rows = [(x, label) for x, label in zip(X, LABELS, strict=True)]
    if kind == "MapDataset":
        data = grain.MapDataset.source(rows).seed(3).shuffle().repeat().batch(16)
        return iter(data.to_iter_dataset())
    sampler = grain.samplers.IndexSampler(50, num_epochs=9, shuffle=True, seed=3)
    batch = grain.transforms.Batch(16)
    return iter(grain.DataLoader(data_source=rows, sampler=sampler, operations=[batch]))


@pytest.mark.filterwarnings("default")  # of Grain's own
@pytest.mark.parametrize("kind", ["MapDataset", "DataLoader"])
def test_grain_goes_on_bit_for_bit(kind):
    whole, losses = fnn.train_on_batches(STEP, fresh(), grain_iterator(kind), KEY, steps=10)
    source = grain_iterator(kind)
    half, _ = fnn.train_on_batches(STEP, fresh(), source, KEY, steps=6)
    saved = json.dumps({"position": stream.get_position(source)})
    source = grain_iterator(kind)
    stream.set_position(source, json.loads(saved)["position"])
    ts, second = fnn.train_on_batches(STEP, half, source, KEY, steps=4)
    chex.assert_trees_all_equal(ts, whole)
    np.testing.assert_array_equal(second["loss"], losses["loss"][6:])
    elsewhere, _ = fnn.train_on_batches(STEP, half, grain_iterator(kind), KEY, steps=4)
    with pytest.raises(AssertionError):
        chex.assert_trees_all_equal(elsewhere, whole)
