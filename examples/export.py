"""A trained network in one file, for programs that have JAX but not fnn.

The file holds the program for CPU, CUDA and TPU, the parameters, and takes any number of rows.

python examples/export.py [--quick]
"""

import importlib.util
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import tyro

import fnn
from fnn.interchange import export

DIGITS = fnn.datasets.digits()
OUT = Path("out")

OTHER_PROGRAM = """
import sys
from pathlib import Path

import jax
import numpy as np

sys.modules["fnn"] = None                                   # as if fnn were not installed
predict = jax.export.deserialize(bytearray(Path("digits.jax").read_bytes())).call
x = np.load("rows.npy")
for rows in (1, 7, len(x)):
    probabilities = predict(x[:rows])
    print(f"{rows} rows -> {probabilities.shape}")
np.save("probabilities.npy", probabilities)
"""


def loss_fn(params, batch, key):
    return fnn.cross_entropy(fnn.mlp(params, batch[0]), batch[1])


def main(quick: bool = False) -> None:
    """Train, export, and let another program predict."""
    if not importlib.util.find_spec("flatbuffers"):
        print("flatbuffers is not installed: pip install 'fnn[export]'")
        return
    OUT.mkdir(exist_ok=True)
    step = fnn.make_train_step(loss_fn, fnn.adam(3e-3))
    ts = step.init(fnn.mlp_init(jax.random.key(0), (64, 128, 10)))
    epochs = 2 if quick else 20
    key = jax.random.key(1)
    run = jax.jit(lambda ts: fnn.fit(step, ts, DIGITS.train, key, epochs=epochs, batch_size=64))
    params = run(ts)[0].params

    def predict(x):
        return fnn.softmax(fnn.mlp(params, x))

    export(predict, jax.ShapeDtypeStruct((1, 64), "float32"), OUT / "digits.jax")
    size = (OUT / "digits.jax").stat().st_size
    print(f"digits.jax: {size:,} bytes, of which {4 * fnn.params.count(params):,} are parameters")

    x, labels = map(np.asarray, DIGITS.test)
    np.save(OUT / "rows.npy", x)
    subprocess.run([sys.executable, "-c", OTHER_PROGRAM], cwd=OUT, check=True)
    found = np.load(OUT / "probabilities.npy")
    np.testing.assert_allclose(found, predict(x), rtol=1e-5, atol=1e-6)
    print(f"the same probabilities; {100 * (found.argmax(1) == labels).mean():.1f} % right")


if __name__ == "__main__":
    tyro.cli(main)
