"""Weights of PyTorch models, before FEDn 0.8: an ``.npz`` file with the parameters' names as keys."""

from collections import OrderedDict

import numpy as np

from ..helperbase import HelperBase


class Helper(HelperBase):
    """A model is an ordered dictionary of numpy arrays, named as in ``state_dict``."""

    def __init__(self):
        super().__init__()
        self.name = "pytorchhelper"

    def increment_average(self, m1, m2, n, N):
        """Return ``m1 + n * (m2 - m1) / N``, array by array."""
        return OrderedDict((name, m1[name] + n * (m2[name] - m1[name]) / N) for name in m1)

    def save(self, model, path=None):
        """Write the arrays of ``model``; numpy appends ``.npz`` to a path that does not end so."""
        path = path or self.get_tmp_path()
        np.savez(path, **{name: np.asarray(array) for name, array in model.items()})
        return path

    def load(self, path):
        """Return the arrays of the file ``path`` by name, in its order."""
        with np.load(path) as arrays:
            return OrderedDict((name, arrays[name]) for name in arrays.files)
