"""The page to play with: what is in the file, and what a headless Chromium makes of it."""

import base64
import json
import re
import runpy
import subprocess
import sys
import zlib

import jax
import numpy as np
import pytest

import fnn
from tests.browser import Page

pytestmark = pytest.mark.slow  # it trains the runs of --quick, and drives a browser


@pytest.fixture(scope="module")
def root(request):
    return request.config.rootpath


@pytest.fixture(scope="module")
def file(root, tmp_path_factory):
    """The page as its command writes it."""
    out = tmp_path_factory.mktemp("playground") / "page.html"
    command = [sys.executable, root / "scripts" / "make_playground.py", "--quick", "--out", out]
    subprocess.run(command, check=True, capture_output=True)
    return out


@pytest.fixture(scope="module")
def script(root):
    return runpy.run_path(str(root / "scripts" / "make_playground.py"))


@pytest.fixture(scope="module")
def about(file):
    text = re.search(r'id="about">(.*?)</script>', file.read_text())[1]
    return json.loads(text)


# --- the file -----------------------------------------------------------------------------------


def test_it_is_one_file_that_may_load_nothing(file):
    html = file.read_text()
    assert "default-src 'none'" in html
    assert not re.search(r"https?://(?!www\.w3\.org/)", html)
    assert not re.search(r"<(link|img|iframe)\b|\bsrc=|@import|url\(", html)
    assert "__ABOUT__" not in html
    assert "__RUNS__" not in html


def unfiltered(left):
    """The maps again, number by number, as a reader of the LOCO-I paper would."""
    out = np.zeros(left.shape, int)
    for place in np.ndindex(left.shape):
        *lead, y, x = place
        a = out[(*lead, y, x - 1)] if x else 0
        b = out[(*lead, y - 1, x)] if y else 0
        c = out[(*lead, y - 1, x - 1)] if x and y else 0
        foretold = min(a, b) if c >= max(a, b) else max(a, b) if c <= min(a, b) else a + b - c
        out[place] = (foretold + int(left[place])) % 256
    return out


def test_filtered_maps_are_found_again(script):
    rng = np.random.default_rng(0)
    maps = rng.integers(0, 256, (3, 2, 5, 6)).astype(np.uint8)
    np.testing.assert_array_equal(unfiltered(script["filtered"](maps)), maps)


def test_codes_are_within_their_error(script):
    values = np.geomspace(1e-6, 1e4, 1001)
    codes = script["as_codes"](values).astype(float)
    np.testing.assert_allclose(10 ** ((codes - 1) / 65534 * 10 - 6), values, rtol=2e-4)
    odd = np.array([0.0, np.nan, np.inf, 1e-30, 1e30, -1.0])
    np.testing.assert_array_equal(script["as_codes"](odd), [0, 0, 65535, 1, 65535, 0])


@pytest.mark.parametrize(("epochs", "per_doubling"), [(32, 1.4), (256, 1.4), (256, 8)])
def test_epochs_rise_to_the_last(script, epochs, per_doubling):
    spaced = script["spaced"](epochs, per_doubling)
    assert spaced[:2] == [0, 1]
    assert spaced[-1] == epochs
    assert (np.diff(spaced) > 0).all()


def test_a_stored_run_is_the_run_made_again(script, file, about):
    """By the library's plain functions: other code than the script's scan, the same key."""
    numbers = [b["size"] for b in about["blocks"]]
    packed = base64.b64decode(re.search(r'id="runs">(.*?)</script>', file.read_text())[1])
    assert len(packed) == sum(numbers)
    at = next(i for i, b in enumerate(about["blocks"]) if b["hidden"] == [8, 8] and b["data"] == 1)
    rates, shown, side = about["choices"]["rates"], about["shown"], about["grid"]
    raw = zlib.decompress(packed[sum(numbers[:at]) :][: numbers[at]], -15)
    width = len(about["curve"]) + (4 + about["layers"]) * len(shown)
    table = np.frombuffer(raw, "<u2", len(rates) * width).reshape(len(rates), width)
    left = np.frombuffer(raw, np.uint8, offset=table.nbytes).reshape(-1, len(rates), side, side)

    x, labels = (array[1] for array in script["points_of"](about["rows"], 0))
    init_key, fit_key = jax.random.split(jax.random.split(jax.random.key(2), 1)[0])

    def loss_fn(params, batch, key):
        return fnn.binary_cross_entropy(
            fnn.mlp(params, batch[0], activation=fnn.tanh)[:, 0], batch[1]
        )

    step = fnn.make_train_step(loss_fn, fnn.adam(rates[1]))
    ts = step.init(fnn.mlp_init(init_key, (2, 8, 8, 1)))
    ts, history = jax.jit(fnn.fit, static_argnames=("step", "epochs", "batch_size"))(
        step, ts, (x, labels), fit_key, epochs=about["choices"]["epochs"], batch_size=about["batch"]
    )
    line = np.linspace(-1, 1, side) * about["data"][1]["half"]
    places = np.stack([*np.meshgrid(line, -line)], -1).astype(np.float32)
    logits = np.asarray(fnn.mlp(ts.params, places, activation=fnn.tanh)[..., 0], float)
    part = 2 * unfiltered(left[-1, 1]) / about["levels"] - 1
    near, far = about["near"], about["far"]
    found = np.sign(part) * near * ((1 + far / near) ** abs(part) - 1)
    error = 0.02 * (near + abs(logits)) / near + 0.02  # half a level, and another order of sums
    assert (abs(found - np.clip(logits, -far, far)) < error).all()
    found = 10 ** ((table[1, : len(about["curve"])].astype(float) - 1) / 65534 * 10 - 6)
    expected = np.asarray(history["loss"]).mean(1)[np.array(about["curve"]) - 1]
    np.testing.assert_allclose(found, expected, rtol=1e-2)


# --- in a browser -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Page(tmp_path_factory.mktemp("browser"))
    yield browser
    browser.close()


@pytest.fixture
def page(browser, file):
    browser.errors.clear()
    browser.requests.clear()
    browser.open(file)
    yield browser
    assert browser.errors == []
    assert len(browser.requests) == 1  # the page itself


def status(page):
    return page.run("document.getElementById('status').textContent")


def picture(page):
    """A number for the pixels of the map."""
    return page.run(
        "(() => { const c = document.getElementById('map'); const d = c.getContext('2d')"
        ".getImageData(0, 0, c.width, c.height).data; let h = 0;"
        "for (let i = 0; i < d.length; i++) h = (h * 31 + d[i]) | 0; return h; })()"
    )


def test_what_it_says_is_what_is_stored(page, about):
    first = about["first"]
    block = next(
        i
        for i, b in enumerate(about["blocks"])
        if b["data"] == first["data"] and b["hidden"] == about["choices"]["hidden"][first["hidden"]]
    )
    percent = about["final"][block][first["rate"]][0]
    epochs = about["choices"]["epochs"]
    assert status(page).startswith(f"Epoch {epochs} of {epochs}: {percent:.0f} % of fresh points")
    assert page.run("document.querySelectorAll('#loss path').length") == 2
    assert page.run("document.querySelectorAll('#norms path').length") == 3
    lengths = "[...document.querySelectorAll('.chart path')].map(p => p.getTotalLength())"
    assert min(page.run(lengths)) > 100


def test_every_control_is_labelled_and_works_by_keyboard(page):
    names = "[...document.querySelectorAll('select, input, button')].map(e => e.ariaLabel || (e.labels && e.labels.length && e.labels[0].textContent) || e.textContent.trim())"
    assert all(page.run(names))
    seen = {picture(page)}
    for control, key in (
        ("time", "ArrowLeft"),
        ("rate", "ArrowRight"),
        ("data", "ArrowDown"),
        ("hidden", "ArrowUp"),
    ):
        page.run(f"document.getElementById('{control}').focus()")
        before = status(page)
        page.press(key)
        page.wait(f"document.getElementById('status').textContent !== {json.dumps(before)}")
        seen.add(picture(page))
    assert len(seen) == 5
    assert page.run("document.getElementById('activation').disabled")  # there is no hidden layer
    assert re.fullmatch(r"#2-0-0-0-\d-0-\d+", page.run("location.hash"))


def test_it_plays_and_says_the_end_aloud(page, about):
    page.run("document.getElementById('play').focus()")
    page.press("Enter")
    assert status(page).startswith("Epoch 0 of")
    assert page.run("document.getElementById('status').ariaLive") == "off"
    assert page.run("document.getElementById('play').textContent.trim()") == "Pause"
    page.press("Enter")
    stopped = status(page)
    assert page.run("document.getElementById('status').ariaLive") == "polite"
    last = len(about["shown"]) - 1
    page.run(f"at({last} - 1); play(true)")
    page.wait(f"document.getElementById('time').value == {last}")
    assert page.run("document.getElementById('play').textContent.trim()") == "Play"
    assert status(page) != stopped


def test_the_address_keeps_the_choices(page, file):
    page.run("choose({ data: 0, rate: 1, time: 3 })")
    page.wait("location.hash.startsWith('#0-')")
    address, said = page.run("location.hash"), status(page)
    for hash, same in ((address, True), ("#9-9-9", False), ("#0-0-0-0-0-0-99", False)):
        page.run("document.documentElement.dataset.ready = ''")
        page.run(f"history.replaceState(null, '', {json.dumps(hash)}); location.reload()")
        page.wait("document.documentElement && document.documentElement.dataset.ready")
        assert (status(page) == said) == same
    page.requests[:] = page.requests[:1]


def test_a_cell_of_the_table_is_a_choice(page):
    page.run("document.querySelector('td button[aria-pressed=false]').click()")
    page.wait("document.querySelector('td button[aria-pressed=true]').dataset.cell === '0 1'")
    assert page.run("document.getElementById('rate').value") == "1"
    assert page.run("document.getElementById('rate').getAttribute('aria-valuetext')") == "0.1"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_nothing_is_wider_than_the_screen(page, file, width, scheme):
    page.open(file, width=width, scheme=scheme)
    assert page.run("document.documentElement.scrollWidth") <= width
    small = "[...document.querySelectorAll('select, input, #play')].filter(e => e.getBoundingClientRect().height < 44).length"
    assert page.run(small) == 0  # each can be hit with a thumb
    corner = page.run(
        "[...document.getElementById('map').getContext('2d').getImageData(2, 2, 1, 1).data]"
    )
    assert (sum(corner[:3]) > 380) == (scheme == "light")
    page.requests[:] = page.requests[:1]


CONTRAST = """(() => {
    const light = c => { const [r, g, b] = c.match(/[\\d.]+/g).map(v => v / 255).map(
        v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
    const paper = light(getComputedStyle(document.body).backgroundColor);
    return Math.min(...[...document.querySelectorAll('h1, h2, p, label, th, code, .key li')].map(e => {
        const ink = light(getComputedStyle(e).color);
        return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05); })); })()"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_the_contrast_of_wcag_aa(page, file, scheme):
    page.open(file, scheme=scheme)
    assert page.run(CONTRAST) >= 4.5
    page.requests[:] = page.requests[:1]


def test_an_old_browser_is_told_why(page, file, tmp_path):
    old = tmp_path / "old.html"
    old.write_text(
        file.read_text()
        .replace('"DecompressionStream"', "")
        .replace("typeof DecompressionStream", 'typeof window["none"]')
    )
    page.call("Page.navigate", url=old.as_uri())
    page.wait("document.readyState === 'complete'")
    said = page.run("document.getElementById('trouble').textContent")
    assert said.startswith("This browser cannot unpack the runs.")
    page.requests[:] = page.requests[:1]
