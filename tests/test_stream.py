import gc
import json
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
from fnn import stream
from fnn.data import permutation

KEY = jax.random.key(0)
X = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
LABELS = (X[:, 0] > 0).astype(np.int32)


def batches_of(size, rows=50):
    return [(X[i : i + size], LABELS[i : i + size]) for i in range(0, rows, size)]


def loss_fn(params, batch, key):
    x, labels = batch
    return fnn.cross_entropy(fnn.dense(params, fnn.dropout(key, x, 0.3)), labels)


def without_dropout(params, batch, key):
    return fnn.cross_entropy(fnn.dense(params, batch[0]), batch[1])


OPTIMIZER = fnn.momentum(0.1)
STEP = fnn.make_train_step(loss_fn, OPTIMIZER)
PLAIN_STEP = fnn.make_train_step(without_dropout, OPTIMIZER)


def fresh():
    return fnn.train_init(fnn.dense_init(KEY, 3, 2), OPTIMIZER)


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
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.005)
    raise AssertionError("it did not happen within 5 s")


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
    wait_for(lambda: not ahead._thread.is_alive())


def test_a_batch_that_is_no_numbers_is_an_error_here():
    with pytest.raises(TypeError, match="not a valid JAX array type"):
        next(stream.prefetch([np.array(["text"])]))


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
        "ahead = fnn.prefetch(np.zeros(1000) for _ in itertools.count())\n"
        "for _ in range(5): next(ahead)\n"
        "print('end')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
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


# --- train_on_batches ---------------------------------------------------------------------------


def by_hand(step, batches):
    """What it should be: the step, once per batch of whatever size, without a mask."""
    ts, losses, step = fresh(), [], jax.jit(step)
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
        return without_dropout(params, batch, key)

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
            for step in (lambda *arguments: STEP(*arguments), lambda *arguments: STEP(*arguments)):
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
    ts, history = fnn.train_on_batches(STEP, fresh(), batches_of(16), KEY, tail="drop")
    expected, losses = by_hand(STEP, batches_of(16)[:3])
    chex.assert_trees_all_close(ts, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(history["loss"], losses, rtol=1e-5)
    mean = fnn.make_train_step(lambda *arguments: loss_fn(*arguments).mean(), OPTIMIZER)
    chex.assert_trees_all_close(
        fnn.train_on_batches(mean, fresh(), batches_of(16), KEY, tail="drop")[0], expected,
        rtol=1e-5, atol=1e-6,
    )  # fmt: skip


def test_what_the_user_holds_stays():
    ts, before = fresh(), jax.device_get(fresh())  # not of ts: who looks at a buffer, keeps it
    device_batches = jax.tree.map(jnp.asarray, batches_of(16))
    sharding = NamedSharding(Mesh(jax.devices(), ("data",)), PartitionSpec("data"))
    for placed in (None, sharding):
        fnn.train_on_batches(STEP, ts, device_batches, KEY, sharding=placed)
        assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((ts, device_batches, KEY)))
    chex.assert_trees_all_equal(ts, before)
    chex.assert_trees_all_equal(device_batches, batches_of(16))
    assert jax.random.key_data(KEY).tolist() == [0, 0]
    host, _ = fnn.train_on_batches(STEP, before, batches_of(16), KEY)  # NumPy leaves
    chex.assert_trees_all_equal(host, fnn.train_on_batches(STEP, ts, batches_of(16), KEY)[0])


def test_each_step_overwrites_the_state_of_the_last(monkeypatch):
    given, real = [], jax.jit

    def spying_jit(step, **options):
        run = real(step, **options)
        return lambda ts, *rest: given.append(ts) or run(ts, *rest)

    monkeypatch.setattr(jax, "jit", spying_jit)
    fnn.train_on_batches(STEP, fresh(), batches_of(16), KEY)
    assert len(given) == 4
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves([ts.params for ts in given]))


def test_aliased_leaves_and_keys_in_the_state():
    zeros = jnp.zeros(3)
    state = {"a": zeros, "b": zeros, "key": KEY}

    def with_state(params, state, batch, key):
        return loss_fn(params, batch, key), state | {"a": state["a"] + 1}

    step = fnn.make_train_step(with_state, OPTIMIZER, has_state=True)
    ts = fnn.train_init(fnn.dense_init(KEY, 3, 2), OPTIMIZER, state)
    ts, _ = fnn.train_on_batches(step, ts, batches_of(10), KEY)
    assert ts.state["a"].tolist() == [5, 5, 5]
    assert ts.state["b"].tolist() == [0, 0, 0]


def test_metrics_are_fetched_in_chunks(monkeypatch):
    fetched, real = [], jax.device_get
    monkeypatch.setattr(jax, "device_get", lambda tree: fetched.append(len(tree)) or real(tree))
    monkeypatch.setattr(stream, "_CHUNK", 20)
    _, history = fnn.train_on_batches(STEP, fresh(), Counter(70), KEY)
    assert fetched == [20, 20, 20, 10]
    assert len(history["loss"]) == 70
    monkeypatch.undo()
    _, at_once = fnn.train_on_batches(STEP, fresh(), Counter(70), KEY)
    chex.assert_trees_all_equal(history, at_once)


def test_steps_bounds_the_run_and_what_is_read():
    source = Counter()
    ts, history = fnn.train_on_batches(STEP, fresh(), source, KEY, steps=7)
    assert (int(ts.step), len(history["loss"]), source.place) == (7, 7, 7)
    ts, history = fnn.train_on_batches(STEP, ts, Counter(3), KEY, steps=7)
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
    batches = batches_of(16)
    batches[3][0][0] = X[48]
    _, history = fnn.train_on_batches(STEP, fresh(), batches, KEY, batch_size=32)
    assert history["loss"].shape == (4,)
    assert np.isfinite(history["loss"]).all()


def test_optax_and_x64():
    with jax.enable_x64(True):
        optimizer = optax.sgd(0.1)
        step = fnn.make_train_step(loss_fn, optimizer)
        ts = fnn.train_init(fnn.dense_init(KEY, 3, 2), optimizer)
        batches = [(x.astype(np.float64), labels) for x, labels in batches_of(16)]
        ts, history = fnn.train_on_batches(step, ts, batches, KEY)
        chex.assert_type(jax.tree.leaves(ts.params), jnp.float64)
        assert history["loss"].dtype == np.float64


@pytest.mark.parametrize(
    ("batches", "options", "message"),
    [
        ([(X[:4], LABELS[:4]), (X[:5], LABELS[:5])], {}, "a batch has 5 rows, more than the 4"),
        (batches_of(10), {"batch_size": 8}, "a batch has 10 rows, more than the 8 of batch_size"),
        ([(X[:4], LABELS[:4]), (X[:4, :2], LABELS[:4])], {}, r"rows are \[\(\(2,\), 'float32'\)"),
        ([(X, LABELS), (X.astype("float64"), LABELS)], {}, r"rows are \[\(\(3,\), 'float64'\)"),
        ([(X[:4], LABELS[:3])], {}, "train_on_batches: data have shapes"),
        ([(X[:0], LABELS[:0])], {}, "train_on_batches: data have no rows"),
        ([], {}, "no batch came; a generator gives its batches only once"),
        ([(X[:4], LABELS[:4])], {"batch_size": 5, "tail": "drop"}, "no batch came"),
        ([], {"steps": 0}, "steps is 0, expected at least 1"),
        ([], {"tail": "cut"}, "tail is 'cut', expected 'pad' or 'drop'"),
        ([], {"size": 0}, "prefetch: size is 0"),
    ],
)
def test_errors(batches, options, message):
    before = threading.active_count()
    with pytest.raises(ValueError, match=message):
        fnn.train_on_batches(PLAIN_STEP, fresh(), batches, KEY, **options)
    wait_for(lambda: threading.active_count() == before)


def test_an_error_of_the_step_stops_the_thread():
    def broken(ts, batch, key, mask=None):
        raise RuntimeError("broken")

    before = threading.active_count()
    with pytest.raises(RuntimeError, match="broken"):
        fnn.train_on_batches(broken, fresh(), Counter(), KEY)
    assert threading.active_count() == before


# --- going on -----------------------------------------------------------------------------------


@pytest.mark.parametrize("as_bytes", [True, False])
def test_a_run_goes_on_bit_for_bit(as_bytes):
    whole, losses = fnn.train_on_batches(STEP, fresh(), Counter(), KEY, steps=10)
    source = Counter(as_bytes=as_bytes)
    half, first = fnn.train_on_batches(STEP, fresh(), source, KEY, steps=6)
    saved = json.loads(json.dumps({"position": fnn.position(source)}))
    source = Counter(as_bytes=as_bytes)
    fnn.restore(source, saved["position"])
    ts, second = fnn.train_on_batches(STEP, jax.device_get(half), source, KEY, steps=4)
    chex.assert_trees_all_equal(ts, whole)
    np.testing.assert_array_equal(np.append(first["loss"], second["loss"]), losses["loss"])


def test_a_run_may_stop_just_before_a_small_batch():
    batches = batches_of(16) * 2
    whole, _ = fnn.train_on_batches(STEP, fresh(), batches, KEY)
    ts, _ = fnn.train_on_batches(STEP, fresh(), batches[:3], KEY)
    with pytest.raises(ValueError, match="a batch has 16 rows, more than the 2"):
        fnn.train_on_batches(STEP, ts, batches[3:], KEY)
    ts, _ = fnn.train_on_batches(STEP, ts, batches[3:], KEY, batch_size=16)
    chex.assert_trees_all_equal(ts, whole)


def test_position_counts_what_was_handed_out():
    source = Counter()
    ahead = stream.prefetch(source, 5)
    assert json.loads(fnn.position(ahead)) == {"place": 0, "list": [0, 1]}
    for _ in range(3):
        next(ahead)
    wait_for(lambda: source.place == 9)
    assert json.loads(fnn.position(ahead))["place"] == 3
    again = stream.prefetch(Counter())
    fnn.restore(again, fnn.position(ahead))
    chex.assert_trees_all_equal(next(again), next(ahead))
    with pytest.raises(ValueError, match="restore it before the first batch"):
        fnn.restore(again, fnn.position(ahead))
    ahead.close()
    again.close()


def test_position_after_an_error_of_the_first_batch():
    source = Counter(0)
    ahead = stream.prefetch(source)
    assert list(ahead) == []
    assert json.loads(fnn.position(ahead))["place"] == 0


def test_a_prefetched_source_stops_where_the_run_does():
    ahead = stream.prefetch(Counter())
    fnn.train_on_batches(STEP, fresh(), ahead, KEY, steps=4)
    assert json.loads(fnn.position(ahead))["place"] == 4
    ahead.close()


def test_position_of_what_has_none():
    generator = (batch for batch in batches_of(10))
    for call in (
        lambda: fnn.position(generator),
        lambda: fnn.restore(generator, "{}"),
        lambda: fnn.position(stream.prefetch(generator)),
    ):
        with pytest.raises(TypeError, match=r"(generator|list_iterator) has no get_state and"):
            call()
    odd = Counter()
    odd.get_state = lambda: {"odd": {1, 2}}
    with pytest.raises(TypeError, match="position: the state holds a set, expected what JSON can"):
        fnn.position(odd)


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
    saved = json.dumps({"position": fnn.position(source)})
    source = grain_iterator(kind)
    fnn.restore(source, json.loads(saved)["position"])
    ts, second = fnn.train_on_batches(STEP, half, source, KEY, steps=4)
    chex.assert_trees_all_equal(ts, whole)
    np.testing.assert_array_equal(second["loss"], losses["loss"][6:])
    elsewhere, _ = fnn.train_on_batches(STEP, half, grain_iterator(kind), KEY, steps=4)
    with pytest.raises(AssertionError):
        chex.assert_trees_all_equal(elsewhere, whole)
