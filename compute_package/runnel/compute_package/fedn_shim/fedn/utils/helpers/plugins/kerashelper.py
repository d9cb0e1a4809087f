"""Weights of Keras models, before FEDn 0.8: the files of :mod:`numpyhelper`."""

from .numpyhelper import Helper as _NumpyHelper


class Helper(_NumpyHelper):
    """A model is what ``get_weights`` of Keras returns: a list of arrays."""

    def __init__(self):
        super().__init__()
        self.name = "kerashelper"
