"""Models as one flat array: a file of nothing but float64 numbers, in the machine's byte order."""

from .numpyhelper import Helper as _NumpyHelper


class Helper(_NumpyHelper):
    """A model is a list of arrays, strung together when it is saved; loaded it is a list of one flat float64 array."""

    def __init__(self):
        super().__init__()
        self.name = "binaryhelper"

    def save(self, model, path=None, file_type="raw_binary"):
        """Write ``model``, see :class:`Helper`."""
        return super().save(model, path, file_type)

    def load(self, path, file_type="raw_binary"):
        """Return a list of the one array in the file ``path``."""
        return super().load(path, file_type)
