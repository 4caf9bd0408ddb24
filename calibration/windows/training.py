"""Windows in the form that a PyTorch ``DataLoader`` takes. Nothing here needs PyTorch.

::

    loader = DataLoader(TrainingWindows(store), batch_sampler=store.batches(32, seed=0), num_workers=4)
    for batch in loader:
        batch["samples"]    # (32, T, C) float32
        batch["rows"]       # (32,) how many rows of each are no padding, before it was resampled
"""

from __future__ import annotations

from typing import Any

import numpy as np

from trunkline.calibration.windows.store import WindowStore


class TrainingWindows:
    """A map-style data set: ``len`` and ``[index]``, of arrays and numbers that the default collation stacks.

    Any number of threads or processes may use one, forked or spawned; see :class:`WindowStore`.
    """

    def __init__(self, store: WindowStore) -> None:
        """Wraps a store at its resolution."""
        self._store = store

    def __len__(self) -> int:
        return len(self._store)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One window.

        Returns:
            ``samples`` (T, C) float32, an array of its own; ``rows``, how many samples of the stream it holds, the rest
            being padding; ``stamp_ns`` of its last sample; ``moment``, which of the times it was cut at.
        """
        store = self._store
        return {
            "samples": np.array(store[index].samples),
            "rows": int(store.rows[index]),
            "stamp_ns": int(store.stamps_ns[index]),
            "moment": int(store.moments[index]),
        }
