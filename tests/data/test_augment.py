from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

import fnn
from fnn import augment
from tests.nets import train_init

KEY = jax.random.key(0)
# Numbers that float32, bfloat16 and float16 all have.
X = jax.random.normal(jax.random.key(1), (6, 7, 5, 2)).astype("bfloat16").astype("float32")
LABELS = jnp.array([0, 1, 2, 0, 1, 2])
HALVES = (jnp.bfloat16, jnp.float16)

MOVES = {
    "flip": augment.flip,
    "flip vertical": partial(augment.flip, direction="vertical"),
    "crop": lambda key, x: augment.crop(key, x, 2),
    "crop to size": lambda key, x: augment.crop(key, x, 1, size=(4, 3)),
    "shift": lambda key, x: augment.shift(key, x, 1.5),
    "rotate": lambda key, x: augment.rotate(key, x, 30.0),
    "noise": lambda key, x: augment.noise(key, x, 0.1),
    "cutout": lambda key, x: augment.cutout(key, x, 3),
}
MIXES = {"mixup": augment.mixup, "cutmix": augment.cutmix}


def apply(name, key, x):
    if name in MOVES:
        return MOVES[name](key, x)
    return MIXES[name](key, x, jnp.arange(len(x)) % 3, classes=3)[0]


# --- properties of each -------------------------------------------------------------------------


# One program an augmentation for all properties: compiling is what takes the time.
@pytest.fixture(scope="module", params=[*MOVES, *MIXES])
def name(request):
    return request.param


@pytest.fixture(scope="module")
def found(name):
    """In one batch: X, then the first image of X many times."""
    keys = jax.random.wrap_key_data(jnp.array([[0, 0], [0, 5], [0, 0]], jnp.uint32))
    x = X if name in MIXES else jnp.concatenate([X, jnp.repeat(X[:1], 64, axis=0)])

    @jax.jit
    def compute(keys, rows):
        def of_key(key):
            return apply(name, key, x)

        halves = [apply(name, keys[0], X.astype(dtype)) for dtype in HALVES]
        found = {"halves": [half.astype("float32") for half in halves]}
        chex.assert_type(halves, HALVES)
        if name in MOVES:
            found["rows"] = MOVES[name](fnn.nn.row_keys(keys[0], rows), X[rows])
        found["vmap"] = jax.vmap(of_key)(keys)
        return found | {"scan": jax.lax.scan(lambda _, key: (None, of_key(key)), None, keys)[1]}

    batches = np.array([[0, 1, 2], [3, 4, 5], [5, 0, 5]])
    first, *others = (compute(keys, rows) for rows in batches)
    if name in MOVES:
        rows = first["rows"], *(other["rows"] for other in others)
        first["rows"] = list(zip(batches, rows, strict=True))
    return first


def test_an_example_draws_by_its_own_number(name, found):
    """In whatever batch and at whatever place it stands."""
    if name in MIXES:
        pytest.skip("what is mixed depends on the batch")
    whole = found["vmap"][0]
    for rows, drawn in found["rows"]:
        chex.assert_trees_all_close(drawn, whole[rows], rtol=1e-6, atol=1e-6)
    assert len(np.unique(whole[6:], axis=0)) > 1


def test_vmap_is_scan_and_no_key_does_nothing(name, found):
    together = found["vmap"]
    chex.assert_trees_all_close(together, found["scan"], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(together[0], together[2])
    assert (together[0] != together[1]).any()
    if name != "crop to size":
        assert apply(name, None, X) is X


def test_half_precision_is_the_same_but_coarser(found):
    for half in found["halves"]:
        chex.assert_trees_all_close(half, found["vmap"][0, :6], rtol=0.01, atol=0.02)


def test_double_precision_passes_through(name):
    with jax.enable_x64(True):
        x = jax.ShapeDtypeStruct(X.shape, jnp.float64)
        assert jax.eval_shape(partial(apply, name, KEY), x).dtype == jnp.float64


def test_errors(name):
    plain = name.split()[0]
    with pytest.raises(TypeError, match=rf"{plain}: x is uint8, expected floating point; scale it"):
        apply(name, None, jnp.zeros(X.shape, jnp.uint8))
    with pytest.raises(TypeError, match=f"{plain}: key is int, expected a key"):
        apply(name, 0, X)
    with pytest.raises(ValueError, match=rf"{plain}: key has shape \(3,\), expected .* 6 rows"):
        apply(name, jax.random.split(KEY, 3), X)
    if plain not in ("noise", "mixup"):
        with pytest.raises(
            ValueError, match=rf"{plain}: x has shape \(6, 35\), expected \[batch, h"
        ):
            apply(name, KEY, X.reshape(6, 70)[:, :35])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: augment.flip(KEY, X, rate=1.5), "flip: rate is 1.5, expected"),
        (lambda: augment.flip(KEY, X, direction="up"), "flip: direction is 'up', expected"),
        (lambda: augment.crop(KEY, X, 1, size=(10, 3)), r"crop: padding is 1 and size is \(10, 3\).*\(9, 7\)"),
        (lambda: augment.crop(KEY, X, -1), "crop: padding is -1, expected at least 0"),
        (lambda: augment.crop(KEY, X, 1, size=4), r"crop: size is 4, expected \(height, width\)"),
        (lambda: augment.crop(KEY, X, 1, size=(0, 3)), "crop: size is 0, expected at least 1"),
        (lambda: augment.flip(KEY, X, rate=np.float32(np.nan)), "flip: rate is nan, expected"),
        (lambda: augment.mixup(KEY, X, LABELS, classes=3, alpha=np.float64(-1)), "mixup: alpha is -1.0, expected a number > 0"),
        (lambda: augment.cutmix(KEY, X, LABELS, classes=0), "cutmix: classes is 0, expected at least 1"),
        (lambda: augment.cutout(KEY, X, np.int64(-1)), "cutout: size is -1, expected at least 0"),
        (lambda: augment.shift(KEY, X, -1.0), "shift: limit is -1.0"),
        (lambda: augment.rotate(KEY, X, -1.0), "rotate: limit is -1.0"),
        (lambda: augment.noise(KEY, X, -1.0), "noise: deviation is -1.0"),
        (lambda: augment.mixup(KEY, X, LABELS), "mixup: labels are int32, expected `classes`"),
        (lambda: augment.mixup(KEY, X, LABELS, classes=3, alpha=0), "mixup: alpha is 0, expected"),
        (lambda: augment.mixup(KEY, X, LABELS[:5], classes=3), r"mixup: labels have shape \(5,\)"),
        (lambda: augment.cutmix(KEY, X, jnp.ones((6, 4)), classes=3), r"expected int \[6\] or probabilities \[6, 3\]"),
        (lambda: augment.rotate_by(X, jnp.ones(5)), r"rotate_by: degrees have shape \(5,\), expected \(6,\)"),
        (lambda: augment.shift_by(X, jnp.ones(6)), r"shift_by: offsets have shape \(6,\), expected \(6, 2\)"),
    ],
)  # fmt: skip
def test_errors_of_options(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_an_empty_batch(name):
    none = jax.eval_shape(partial(apply, name, KEY), jax.ShapeDtypeStruct((0, 7, 5, 2), X.dtype))
    assert none.shape[0] == 0


def test_a_batch_of_one_is_mixed_with_itself():
    run = jax.jit(lambda x: [mix(KEY, x, LABELS[:1], classes=3) for mix in MIXES.values()])
    for x, q in run(X[:1]):
        chex.assert_trees_all_close(x, X[:1], rtol=1e-5, atol=1e-6)
        chex.assert_trees_all_close(q, jnp.array([[1.0, 0, 0]]), atol=1e-6)


# --- what each draws ----------------------------------------------------------------------------


def test_flips_at_the_rate():
    x = jnp.broadcast_to(jnp.arange(6.0).reshape(1, 2, 3, 1), (2000, 2, 3, 1))
    for direction, axis in (("horizontal", 1), ("vertical", 0)):
        y = np.asarray(jax.jit(partial(augment.flip, rate=0.3, direction=direction))(KEY, x))
        flipped = (y == np.flip(x[0], axis)).all((1, 2, 3))
        assert (flipped | (y == x[0]).all((1, 2, 3))).all()
        assert abs(flipped.mean() - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 2000)


def test_crops_are_windows_of_the_padded_image_each_as_likely():
    image = np.arange(1.0, 13).reshape(3, 4, 1)
    x = jnp.broadcast_to(jnp.asarray(image, jnp.float32), (3000, 3, 4, 1))
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)))
    windows = [padded[i : i + 3, j : j + 4] for i in range(3) for j in range(3)]
    y = np.asarray(jax.jit(lambda key: augment.crop(key, x, 1))(KEY))
    found = np.array([(y == window).all((1, 2, 3)).sum() for window in windows])
    assert found.sum() == 3000
    assert ((found - 3000 / 9) ** 2 / (3000 / 9)).sum() < 26.1  # chi^2 of 8, p = 0.001
    small = np.asarray(jax.jit(lambda key: augment.crop(key, x, 0, size=(2, 2)))(KEY))
    assert len(np.unique(small[:, 0, 0, 0])) == 6
    middle = augment.crop(None, x[:1], 1, size=(3, 2))
    np.testing.assert_array_equal(middle[0], padded[1:4, 2:4])


@pytest.mark.parametrize(
    "offset", [(0, 0), (2, -1), (-3, 4), (0.5, 0), (-0.25, 1.75), (6, 0), (7, 0), (-40, 2), (0, 5)]
)
def test_shifts_are_scipys(offset):
    y = shift_by(X, jnp.broadcast_to(jnp.array(offset, jnp.float32), (6, 2)))
    want = scipy.ndimage.shift(np.asarray(X, float), (0, *offset, 0), order=1, mode="grid-constant")
    if all(float(o).is_integer() for o in offset):
        np.testing.assert_array_equal(y, want)
    np.testing.assert_allclose(y, want, atol=1e-6)


shift_by, rotate_by = jax.jit(augment.shift_by), jax.jit(augment.rotate_by)


@pytest.mark.parametrize("size", [5, 6])
def test_quarter_turns_are_exact(size):
    x = jax.random.normal(KEY, (7, size, size, 2))
    quarters = [0, 1, 2, 3, 4, -1, 1000]
    y = rotate_by(x, 90.0 * jnp.array(quarters, jnp.float32))
    for image, turned, k in zip(x, y, quarters, strict=True):
        np.testing.assert_array_equal(turned, np.rot90(image, k))


def test_rotations_are_scipys():
    degrees = jnp.array([30.0, -45.0, 1.0, 200.0, 89.5, 0.0])
    y = rotate_by(X, degrees)
    for image, turned, angle in zip(np.asarray(X, float), y, degrees, strict=True):
        want = scipy.ndimage.rotate(
            image, float(angle), reshape=False, order=1, mode="grid-constant"
        )
        np.testing.assert_allclose(turned, want, atol=1e-5)
    chex.assert_trees_all_equal(rotate_by(X, jnp.zeros(6)), X)


def test_limits_are_kept_filled_and_may_be_swept():
    # A ramp tells how far it was moved, a bright pixel by what angle it was turned.
    ramp = jnp.broadcast_to(jnp.arange(21.0)[:, None, None], (500, 21, 9, 1))
    shifts = jax.jit(jax.vmap(lambda limit: augment.shift(KEY, ramp, limit)))
    moved = 10 - np.asarray(shifts(jnp.array([0.0, 2.5]))[:, :, 10, 4, 0])
    np.testing.assert_array_equal(moved[0], 0)
    assert np.abs(moved[1]).max() < 2.5
    assert moved[1].std() == pytest.approx(5 / np.sqrt(12), rel=0.1)
    x = jnp.zeros((300, 41, 41, 1)).at[:, 20, 40].set(1.0).at[:, 20, 39].set(1.0)
    y = np.asarray(jax.jit(lambda: augment.rotate(KEY, x, 20.0))())[..., 0]
    rows, columns = np.mgrid[:41, :41] - 20
    mass = y.sum((1, 2))
    angle = np.degrees(np.arctan2(-(y * rows).sum((1, 2)) / mass, (y * columns).sum((1, 2)) / mass))
    assert np.abs(angle).max() < 20.5
    assert angle.std() == pytest.approx(40 / np.sqrt(12), rel=0.1)


def test_noise_is_normal_and_may_be_swept():
    x = jnp.ones((100, 10, 10, 3))
    y = jax.jit(jax.vmap(lambda deviation: augment.noise(KEY, x, deviation)))(jnp.array([0.0, 0.5]))
    chex.assert_trees_all_equal(y[0], x)
    assert float((y[1] - 1).std()) == pytest.approx(0.5, rel=0.02)
    assert abs(float((y[1] - 1).mean())) < 4 * 0.5 / np.sqrt(30000)
    assert augment.noise(KEY, X.reshape(6, -1), 0.1).shape == (6, 70)


def test_cutout_is_one_square_cut_off_at_the_edge():
    holes = np.asarray(jax.jit(lambda: augment.cutout(KEY, jnp.ones((500, 9, 8, 2)), 4))()) == 0
    assert (holes[..., 0] == holes[..., 1]).all()
    heights, widths = holes[..., 0].any(2).sum(1), holes[..., 0].any(1).sum(1)
    np.testing.assert_array_equal(holes[..., 0].sum((1, 2)), heights * widths)
    assert set(heights) == set(widths) == {2, 3, 4}
    assert holes[..., 0].mean(0).min() > 0
    assert not np.asarray(augment.cutout(KEY, X, 0) == 0).any()


# --- mixing -------------------------------------------------------------------------------------


def test_mixup_mixes_labels_as_it_mixes_images():
    # Row i is the unit vector i, so that the image says what it was mixed of.
    x = jnp.eye(64).reshape(64, 1, 64, 1)
    mix = partial(augment.mixup, KEY, labels=jnp.arange(64), classes=64, alpha=0.4)
    (mixed, q), (flat, _) = jax.jit(lambda x: (mix(x), mix(x.reshape(64, 64))))(x)
    mixed, q = np.asarray(mixed)[:, 0, :, 0], np.asarray(q)
    np.testing.assert_allclose(mixed, q, atol=1e-7)
    np.testing.assert_allclose(q.sum(1), 1, rtol=1e-6)
    assert ((q > 0).sum(1) <= 2).all()
    partners = np.where(np.eye(64) > 0, 0, q).argmax(1)
    assert len(np.unique((partners - np.arange(64)) % 64)) > 20
    np.testing.assert_array_equal(flat, mixed)


@jax.jit
def kept_shares(alpha):
    """Of 2000 examples, by rows that say what they were mixed of."""
    one_hot = jnp.eye(2000)
    return jnp.diag(augment.mixup(KEY, one_hot[:, :1], one_hot, alpha=alpha)[1])


@pytest.mark.parametrize("alpha", [0.01, 0.2, 1.0, 5.0])
def test_mixup_draws_from_the_beta(alpha):
    keep = np.asarray(kept_shares(alpha))
    assert np.isfinite(keep).all()
    variance = 1 / (4 * (2 * alpha + 1))
    assert keep.mean() == pytest.approx(0.5, abs=4 * np.sqrt(variance / 2000))
    assert keep.var() == pytest.approx(variance, rel=0.1)


def test_mixing_at_the_ends_of_alpha():
    for alpha, kept in ((1e-38, [0, 1]), (np.inf, [0.5])):
        assert np.isin(kept_shares(alpha), kept).all()
    none = jnp.zeros((2, 0, 3, 1))  # images without pixels
    assert augment.cutmix(KEY, none, jnp.arange(2), classes=2)[0].shape == none.shape


def test_cutmix_labels_are_the_share_of_the_area():
    images = jnp.broadcast_to(jnp.arange(1.0, 65)[:, None, None, None], (64, 9, 7, 2))
    y, q = jax.jit(lambda: augment.cutmix(KEY, images, jnp.arange(64), classes=64))()
    y, q = np.asarray(y), np.asarray(q)
    assert (y[..., 0] == y[..., 1]).all()
    pasted = y[..., 0] != np.arange(1, 65)[:, None, None]
    share = pasted.mean((1, 2))
    np.testing.assert_allclose(1 - np.diag(q), share, atol=1.2e-7)
    np.testing.assert_allclose(q.sum(1), 1, rtol=1e-6)
    assert len(np.unique(share)) > 10
    for i in range(64):
        values = np.unique(y[i][pasted[i]])
        assert len(values) <= 1  # one partner, whose label it is
        assert all(q[i, int(v) - 1] == pytest.approx(share[i], abs=1e-6) for v in values)
        rows, columns = pasted[i].any(1).sum(), pasted[i].any(0).sum()
        assert pasted[i].sum() == rows * columns


@pytest.mark.parametrize("mix", [augment.mixup, augment.cutmix])
def test_labels_as_probabilities(mix):
    one_hot = jax.nn.one_hot(LABELS, 3)
    # Half for the class, half for the number of the row, which says what each row was mixed of.
    both = jnp.concatenate([one_hot, jnp.eye(6)], axis=1) / 2

    @jax.jit
    def run():
        by_number = mix(KEY, X, LABELS, classes=3)
        bad = mix(None, X, LABELS.at[2].set(3), classes=3)[1]
        head = mix(fnn.nn.row_keys(KEY, 3), X[:3], jnp.eye(3))[1]
        return by_number, mix(KEY, X, both), bad, head

    by_number, (x, q), bad, head = run()
    by_class, by_row = 2 * q[:, :3], 2 * q[:, 3:]
    chex.assert_trees_all_close(by_number, (x, by_class), rtol=1e-6)
    chex.assert_trees_all_equal(mix(None, X, LABELS, classes=3)[1], one_hot)
    np.testing.assert_array_equal(np.isnan(bad).all(1), np.arange(6) == 2)
    assert mix(None, X.astype("bfloat16"), LABELS, classes=3)[1].dtype == jnp.float32
    # What example i keeps of itself depends on its number alone, not on the batch.
    np.testing.assert_allclose(np.diag(head), np.diag(by_row)[:3], rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int64, np.uint64])
def test_labels_in_dtypes_that_cannot_hold_the_classes(dtype):
    beyond = 2**32 + 1 if np.iinfo(dtype).bits == 64 else 127
    labels, x = np.array([0, 5, 100, 127, 2, beyond], dtype), X[:, 0, :, 0]
    for classes in (np.int64(128), 256, 65_536):
        q = augment.mixup(None, x, labels, classes=classes)[1]
        expected = np.stack([np.eye(1, classes, i)[0] for i in [0, 5, 100, 127, 2, 127]])
        if beyond > classes:
            expected[5] = np.nan
        np.testing.assert_array_equal(q, expected)


def test_types_of_options():
    with pytest.raises(TypeError, match=r"crop: padding is 1\.0, expected a whole number"):
        augment.crop(KEY, X, 1.0)
    with pytest.raises(TypeError, match=r"cutout: size is 2\.5, expected a whole number"):
        augment.cutout(KEY, X, 2.5)
    with pytest.raises(TypeError, match="noise: x came as a list, expected an array"):
        augment.noise(KEY, [[1.0]], 0.1)
    with pytest.raises(TypeError, match="mixup: labels came as a list, expected an array"):
        augment.mixup(KEY, X, [0, 1], classes=3)
    for kind in (np.int64, np.uint8, jnp.int32):
        assert augment.crop(None, X, kind(1), size=(kind(3), 4)).shape == (6, 3, 4, 2)


def test_in_a_training_program():
    data = (jnp.arange(2560.0).reshape(40, 8, 8, 1) / 2560, jnp.arange(40) % 3)

    def loss_fn(params, batch, key):
        x, labels = batch
        first, second = fnn.split(key)
        x, labels = augment.mixup(first, augment.flip(second, x), labels, classes=3)
        return fnn.cross_entropy(fnn.dense(params, x.reshape(-1, 64)), labels)

    def run(key):
        optimizer = fnn.sgd(0.1)
        ts = train_init(fnn.dense_init(key, 64, 3), optimizer)
        step = fnn.make_train_step(loss_fn, optimizer)
        return fnn.fit(step, ts, data, key, epochs=2, batch_size=16)[1]["loss"]

    losses = np.asarray(jax.jit(run)(KEY))
    assert np.isfinite(losses).all()
    assert len(np.unique(losses)) == losses.size
