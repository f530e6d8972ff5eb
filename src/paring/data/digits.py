"""The 1,797 handwritten digits of 8x8 pixels that come with scikit-learn: real data, no download, trains in seconds.

UCI "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak 1998), its test part, grey values 0 to 16. There is
no published train/test split of it, so ours is fixed here: 20 % of every class, drawn with the split seed 0, whatever
seed the validation part is drawn with.
"""

from __future__ import annotations

import numpy as np
import torch

from paring.data.error import extra
from paring.data.split import Split, stratified

TEST_FRACTION = 0.2
SPLIT_SEED = 0


def parts() -> tuple[Split, Split]:
    """(train of 1,438, test of 359); x is (N, 1, 8, 8) in [0, 1]. Raises ImportError without scikit-learn."""
    digits = extra("sklearn.datasets").load_digits()
    x = torch.from_numpy(np.divide(digits.images[:, None], 16, dtype=np.float64).astype(np.float32))
    return stratified(Split(x, torch.from_numpy(digits.target.astype(np.int64))), TEST_FRACTION, SPLIT_SEED)
