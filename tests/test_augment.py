from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

import fnn
from fnn import augment

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (6, 7, 5, 2))
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
MIXES = {
    "mixup": partial(augment.mixup, labels=LABELS, classes=3),
    "cutmix": partial(augment.cutmix, labels=LABELS, classes=3),
}
every_move = pytest.mark.parametrize("move", MOVES.values(), ids=MOVES)
every_one = pytest.mark.parametrize("name", [*MOVES, *MIXES])


def apply(name, key, x):
    return MOVES[name](key, x) if name in MOVES else MIXES[name](key, x)[0]


# --- properties of each -------------------------------------------------------------------------


@every_move
def test_an_example_draws_by_its_own_number(move):
    """In whatever batch and at whatever place it stands."""
    run = jax.jit(lambda rows: move(fnn.row_keys(KEY, rows), X[rows]))
    whole = jax.jit(lambda: move(KEY, X))()
    for rows in (jnp.array([0, 1, 2]), jnp.array([3, 4, 5]), jnp.array([5, 0, 5])):
        chex.assert_trees_all_close(run(rows), whole[rows], rtol=1e-6, atol=1e-6)
    same = np.asarray(jax.jit(lambda: move(KEY, jnp.repeat(X[:1], 64, axis=0)))())
    assert len(np.unique(same, axis=0)) > 1


@every_one
def test_vmap_is_scan_and_no_key_does_nothing(name):
    keys = jax.random.wrap_key_data(jnp.array([[0, 0], [0, 5], [0, 0]], jnp.uint32))
    together, one_by_one = jax.jit(
        lambda keys: (
            jax.vmap(lambda key: apply(name, key, X))(keys),
            jax.lax.scan(lambda _, key: (None, apply(name, key, X)), None, keys)[1],
        )
    )(keys)
    chex.assert_trees_all_close(together, one_by_one, rtol=1e-5, atol=1e-6)
    assert (together[0] == together[2]).all()
    assert (together[0] != together[1]).any()
    if name != "crop to size":
        assert apply(name, None, X) is X


@every_one
def test_half_precision_is_the_same_but_coarser(name):
    x = X.astype("bfloat16")  # in float16 and float32 too
    whole, *halves = jax.jit(
        lambda: [apply(name, KEY, x.astype(d)) for d in ("float32", *HALVES)]
    )()
    chex.assert_type(halves, HALVES)
    for half in halves:
        chex.assert_trees_all_close(half.astype("float32"), whole, rtol=0.01, atol=0.02)


def test_double_precision_passes_through():
    with jax.enable_x64(True):
        x = jnp.asarray(np.asarray(X), jnp.float64)
        out = jax.jit(lambda: [apply(name, KEY, x) for name in [*MOVES, *MIXES]])()
        chex.assert_type(out, jnp.float64)


@every_one
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
        (lambda: augment.crop(KEY, X, 1, size=(10, 3)), r"crop: padding is 1 and size \(10, 3\).*\(9, 7\)"),
        (lambda: augment.crop(KEY, X, -1), "crop: padding is -1"),
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


def test_an_empty_batch_and_a_batch_of_one():
    run = jax.jit(lambda x, labels: [
        *(move(KEY, x) for move in MOVES.values()),
        augment.mixup(KEY, x, labels, classes=3),
        augment.cutmix(KEY, x, labels, classes=3),
    ])  # fmt: skip
    assert all(leaf.shape[0] == 0 for leaf in jax.tree.leaves(run(X[:0], LABELS[:0])))
    mixed, cut = run(X[:1], LABELS[:1])[-2:]
    for x, q in (mixed, cut):
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
    mixed, q = jax.jit(lambda: augment.mixup(KEY, x, jnp.arange(64), classes=64, alpha=0.4))()
    mixed, q = np.asarray(mixed)[:, 0, :, 0], np.asarray(q)
    np.testing.assert_allclose(mixed, q, atol=1e-7)
    np.testing.assert_allclose(q.sum(1), 1, rtol=1e-6)
    assert ((q > 0).sum(1) <= 2).all()
    partners = np.where(np.eye(64) > 0, 0, q).argmax(1)
    assert len(np.unique((partners - np.arange(64)) % 64)) > 20
    flat, _ = augment.mixup(KEY, x.reshape(64, 64), jnp.arange(64), classes=64, alpha=0.4)
    np.testing.assert_array_equal(flat, mixed)


@pytest.mark.parametrize("alpha", [0.01, 0.2, 1.0, 5.0])
def test_mixup_draws_from_the_beta(alpha):
    x = jnp.tile(jnp.array([[0.0], [1.0]]), (1000, 1))
    labels = jnp.arange(2000)[:, None] == jnp.arange(2000)
    keep = jax.jit(
        lambda alpha: jnp.diag(augment.mixup(KEY, x, labels.astype("float32"), alpha=alpha)[1])
    )(alpha)
    assert np.isfinite(keep).all()
    variance = 1 / (4 * (2 * alpha + 1))
    assert float(keep.mean()) == pytest.approx(0.5, abs=4 * np.sqrt(variance / 2000))
    assert float(keep.var()) == pytest.approx(variance, rel=0.1)


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

    @jax.jit
    def run():
        by_number = mix(KEY, X, LABELS, classes=3)
        bad = mix(None, X, LABELS.at[2].set(3), classes=3)[1]
        head = mix(fnn.row_keys(KEY, 3), X[:3], jnp.eye(3))[1]
        return by_number, mix(KEY, X, one_hot), bad, head, mix(KEY, X, jnp.eye(6))[1]

    by_number, by_probability, bad, head, whole = run()
    chex.assert_trees_all_close(by_number, by_probability, rtol=1e-6)
    chex.assert_trees_all_equal(mix(None, X, LABELS, classes=3)[1], one_hot)
    np.testing.assert_array_equal(np.isnan(bad).all(1), np.arange(6) == 2)
    assert mix(None, X.astype("bfloat16"), LABELS, classes=3)[1].dtype == jnp.float32
    # What example i keeps of itself depends on its number alone, not on the batch.
    np.testing.assert_allclose(np.diag(head), np.diag(whole)[:3], rtol=1e-6)


def test_in_a_training_program():
    data = (jax.random.uniform(KEY, (40, 8, 8, 1)), jnp.arange(40) % 3)

    def loss_fn(params, batch, key):
        x, labels = batch
        first, second, third = fnn.split(key, 3)
        x = augment.crop(first, augment.flip(second, x), 1)
        x, labels = augment.mixup(third, x, labels, classes=3)
        return fnn.cross_entropy(fnn.mlp(params, x.reshape(-1, 64)), labels)

    def run(key):
        optimizer = fnn.sgd(0.1)
        ts = fnn.train_init(fnn.mlp_init(key, (64, 8, 3)), optimizer)
        step = fnn.make_train_step(loss_fn, optimizer)
        return fnn.fit(step, ts, data, key, epochs=2, batch_size=16)[1]["loss"]

    losses = np.asarray(jax.jit(run)(KEY))
    assert np.isfinite(losses).all()
    assert len(np.unique(losses)) == losses.size
