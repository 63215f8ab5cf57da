"""Features of pictures that were encoded before, by content, the least recently used going first.

A conversation sends its pictures again with every turn, several choices of one prompt share theirs,
and a preempted sequence comes back with what it had.
"""

from collections import OrderedDict

import torch


class FeatureCache:
    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._features: OrderedDict[bytes, torch.Tensor] = OrderedDict()
        self.num_bytes = 0  # held now

    def get(self, key: bytes) -> torch.Tensor | None:
        """feature_MD, not to be written to."""
        if key in self._features:
            self._features.move_to_end(key)
        return self._features.get(key)

    def put(self, key: bytes, feature_MD: torch.Tensor) -> None:
        """Keep it as long as there is room; what is larger than the whole cache is not kept."""
        if key in self._features or feature_MD.nbytes > self._max_bytes:
            return
        while self.num_bytes + feature_MD.nbytes > self._max_bytes:
            _, dropped = self._features.popitem(last=False)
            self.num_bytes -= dropped.nbytes
        self._features[key] = feature_MD
        self.num_bytes += feature_MD.nbytes
