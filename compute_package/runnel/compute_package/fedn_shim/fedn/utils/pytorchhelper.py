"""``PytorchHelper`` of FEDn 0.2 to 0.4, which knew no numbers of examples."""

from collections import OrderedDict
from io import BytesIO

from .helpers.plugins.pytorchhelper import Helper


class PytorchHelper(Helper):
    """A model is an ordered dictionary of numpy arrays, named as in ``state_dict``."""

    def increment_average(self, model, model_next, n, N=1):
        """Return the mean of ``n`` models, from that of ``n - 1`` and one more; from 0.4 on by ``n / N``."""
        share = 1.0 / n if N == 1 else n / N
        return OrderedDict((name, model[name] + (model_next[name] - model[name]) * share) for name in model)

    def get_tensor_diff(self, model, base_model):
        """Return ``model - base_model``, array by array."""
        return OrderedDict((name, model[name] - base_model[name]) for name in model)

    def add_tensor_diff(self, model, base_model):
        """Return ``model + base_model``, array by array."""
        return OrderedDict((name, model[name] + base_model[name]) for name in model)

    def save_model(self, weights_dict, path=None):
        """Write ``weights_dict`` and return the path."""
        return self.save(weights_dict, path)

    def load_model(self, path="weights.npz"):
        """Return the arrays in the file ``path`` by name."""
        return self.load(path)

    def serialize_model_to_BytesIO(self, model):  # noqa: N802 (name of FEDn)
        """Return a binary file in memory that holds ``model``, at its start."""
        file = BytesIO()
        self.save(model, file)
        file.seek(0)
        return file

    def load_model_from_BytesIO(self, model_bytes):  # noqa: N802 (name of FEDn)
        """Return the arrays in the bytes ``model_bytes`` by name."""
        return self.load(BytesIO(model_bytes))
