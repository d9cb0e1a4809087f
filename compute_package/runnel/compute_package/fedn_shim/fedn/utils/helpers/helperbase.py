"""What every helper has."""

import os
import tempfile
from abc import ABC, abstractmethod


class HelperBase(ABC):
    """Reads and writes models of one kind."""

    def __init__(self):
        self.name = type(self).__name__

    @abstractmethod
    def increment_average(self, m1, m2, n, N):
        """Return the mean of the models so far, ``m1``, moved towards ``m2``, which has ``n`` of now ``N`` examples."""

    @abstractmethod
    def save(self, model, path=None):
        """Write ``model`` to ``path``, a temporary file if None, and return the path."""

    @abstractmethod
    def load(self, path):
        """Return the model in the file ``path``."""

    def get_tmp_path(self, suffix=".npz"):
        """Return the path of a new empty temporary file."""
        descriptor, path = tempfile.mkstemp(suffix=suffix)
        os.close(descriptor)
        return path
