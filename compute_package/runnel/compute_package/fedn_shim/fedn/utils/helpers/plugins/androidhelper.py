"""Models of Android clients: a file of nothing but float32 numbers, little-endian."""

import numpy as np

from ..helperbase import HelperBase


class Helper(HelperBase):
    """A model is one flat array; it is float64 in memory."""

    def __init__(self):
        super().__init__()
        self.name = "androidhelper"

    def increment_average(self, m1, m2, n, N):
        """Return ``m1`` moved towards ``m2`` by ``n / N``."""
        share = n / N
        return (1 - share) * np.asarray(m1) + share * np.asarray(m2)

    def increment_average_add(self, m1, m2, n, N):
        """Return the same as :meth:`increment_average`."""
        return np.add(m1, n * (np.asarray(m2) - np.asarray(m1)) / N)

    def save(self, model, path=None):
        """Write the numbers of ``model`` to ``path``."""
        path = path or self.get_tmp_path()
        np.asarray(model, dtype="<f4").tofile(path)
        return path

    def load(self, path):
        """Return the numbers of a path or of an open file, float64[n]."""
        if hasattr(path, "read"):
            return np.frombuffer(path.read(), dtype="<f4").astype(np.float64)
        return np.fromfile(path, dtype="<f4").astype(np.float64)

    def get_tmp_path(self, suffix=""):
        """Return the path of a new empty temporary file, without suffix."""
        return super().get_tmp_path(suffix)
