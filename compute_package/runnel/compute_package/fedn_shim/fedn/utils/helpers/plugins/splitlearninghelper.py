"""Embeddings and gradients of split learning: an ``.npz`` file with the clients' names as keys."""

import os

import numpy as np

from ..helperbase import HelperBase


class Helper(HelperBase):
    """A model is a dictionary of arrays."""

    def __init__(self):
        super().__init__()
        self.name = "splitlearninghelper"

    def increment_average(self, m1, m2, n=None, N=None):
        """Return the entries of both."""
        return {**m1, **m2}

    def save(self, model, path=None, file_type="npz"):
        """Write the arrays of ``model`` to exactly ``path``."""
        self.check_supported_file_type(file_type)
        path = path or self.get_tmp_path()
        with open(path, "wb") as file:
            np.savez(file, **{str(key): np.asarray(value) for key, value in model.items()})
        return path

    def load(self, path):
        """Return the arrays of the file ``path`` by name."""
        with np.load(path) as arrays:
            return {name: arrays[name] for name in arrays.files}

    def load_targets(self):
        """Return ``y_train`` of the torch file that FEDN_LABELS_PATH names, as a column."""
        import torch

        return torch.load(os.environ["FEDN_LABELS_PATH"], weights_only=True)["y_train"].reshape(-1, 1)

    def check_supported_file_type(self, file_type):
        """Return True, or raise ValueError for a type that is neither ``npz`` nor ``raw_binary``."""
        if file_type not in ("npz", "raw_binary"):
            raise ValueError(f"A file is of the type npz or raw_binary, not {file_type!r}.")
        return True
