"""The 1,797 handwritten digits of 8x8 pixels that come with scikit-learn: real data, no download, trains in seconds.

UCI "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak 1998), its test part, grey values 0 to 16. There is
no published train/test split of it, so ours is fixed here: 20 % of every class, drawn with the split seed 0, whatever
seed the validation part is drawn with.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from paring.data.data_error import extra, folder_of
from paring.data.split import Split, stratified

TEST_FRACTION = 0.2
SPLIT_SEED = 0


def parts() -> tuple[Split, Split]:
    """(train of 1,438, test of 359); x is (N, 1, 8, 8) in [0, 1]. Raises ImportError without scikit-learn."""
    table = _table(folder_of("sklearn"))
    x = torch.from_numpy(np.divide(table[:, :64].reshape(-1, 1, 8, 8), 16, dtype=np.float64).astype(np.float32))
    return stratified(Split(x, torch.from_numpy(table[:, 64].astype(np.int64))), TEST_FRACTION, SPLIT_SEED)


def _table(package: Path) -> NDArray[np.float64]:
    """(1797, 65): 64 grey values and the class. Importing scikit-learn only to read its file would take two seconds."""
    path = package / "datasets" / "data" / "digits.csv.gz"
    if not path.exists():  # a scikit-learn that keeps it elsewhere
        return np.column_stack(extra("sklearn.datasets").load_digits(return_X_y=True))
    return np.loadtxt(path, delimiter=",")
