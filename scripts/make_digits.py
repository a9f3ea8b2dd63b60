"""Write fnn/data/datasets/digits.npz from scikit-learn's UCI digits, with the fixed split.

    pip install scikit-learn && python scripts/make_digits.py

The rows are shuffled once, by NumPy's PCG64 seeded with 0, into 1,077 to train, 360 to validate
and 360 to test.
"""

import numpy as np
from sklearn.datasets import load_digits

x, labels = load_digits(return_X_y=True)
order = np.random.Generator(np.random.PCG64(0)).permutation(len(x))
parts = dict(zip(("train", "valid", "test"), np.split(order, [1077, 1437]), strict=True))
arrays = {f"{part}_x": x[rows].astype(np.uint8) for part, rows in parts.items()}
arrays |= {f"{part}_labels": labels[rows].astype(np.uint8) for part, rows in parts.items()}
np.savez_compressed("fnn/data/datasets/digits.npz", **arrays)
