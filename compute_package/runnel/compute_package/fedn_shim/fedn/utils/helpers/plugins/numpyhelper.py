"""Models as lists of arrays: an ``.npz`` file with the keys ``"0"`` to ``"n-1"``."""

import numpy as np

from ..helperbase import HelperBase

_FILE_TYPES = ("npz", "raw_binary")


class Helper(HelperBase):
    """A model is a list of arrays, each of its own shape and dtype."""

    def __init__(self):
        super().__init__()
        self.name = "numpyhelper"

    def increment_average(self, m1, m2, n, N):
        """Return ``m1 + n * (m2 - m1) / N``, array by array."""
        return [np.add(x, n * (y - x) / N) for x, y in zip(m1, m2)]

    def add(self, m1, m2, a=1.0, b=1.0):
        """Return ``a * m1 + b * m2``."""
        return [x * a + y * b for x, y in zip(m1, m2)]

    def subtract(self, m1, m2, a=1.0, b=1.0):
        """Return ``a * m1 - b * m2``."""
        return self.add(m1, m2, a, -b)

    def divide(self, m1, m2):
        """Return ``m1 / m2``, element by element."""
        return list(map(np.divide, m1, m2))

    def multiply(self, m1, m2):
        """Return ``m1 * m2``, element by element."""
        return list(map(np.multiply, m1, m2))

    def sqrt(self, m1):
        """Return the square root of each element."""
        return list(map(np.sqrt, m1))

    def power(self, m1, a):
        """Return each element raised to the power ``a``."""
        return [np.power(x, a) for x in m1]

    def norm(self, m):
        """Return the sum of the arrays' 1-norms, as numpy.linalg defines it."""
        return sum((np.linalg.norm(x, 1) for x in m), 0.0)

    def sign(self, m):
        """Return the sign of each element."""
        return list(map(np.sign, m))

    def ones(self, m1, a):
        """Return arrays of the shapes of ``m1`` that are ``a`` everywhere."""
        return [np.full(np.shape(x), a, dtype=float) for x in m1]

    def save(self, model, path=None, file_type="npz"):
        """Write the list of arrays ``model``; numpy appends ``.npz`` to a path that does not end so."""
        self.check_supported_file_type(file_type)
        path = path or self.get_tmp_path()
        if file_type == "raw_binary":
            parts = [np.asarray(part, dtype=np.float64).ravel() for part in model]
            np.concatenate(parts).tofile(path)
        else:
            # Stored, where FEDn deflates: whoever reads the one reads the other, and floats hardly get smaller.
            np.savez(path, **{str(number): array for number, array in enumerate(model)})
        return path

    def load(self, path, file_type="npz"):
        """Return the arrays of a path or an open file in their order; of raw binary the one flat float64 array."""
        self.check_supported_file_type(file_type)
        if file_type == "raw_binary":
            if hasattr(path, "read"):
                return [np.frombuffer(path.read(), dtype=np.float64)]
            return [np.fromfile(path, dtype=np.float64)]
        with np.load(path) as arrays:
            return [arrays[str(number)] for number in range(len(arrays.files))]

    def check_supported_file_type(self, file_type):
        """Return True, or raise ValueError for a type that is neither ``npz`` nor ``raw_binary``."""
        if file_type not in _FILE_TYPES:
            raise ValueError(f"A model file is of the type {' or '.join(_FILE_TYPES)}, not {file_type!r}.")
        return True
