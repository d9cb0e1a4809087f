"""``KerasHelper`` of FEDn 0.2 to 0.4, which knew no numbers of examples."""

from io import BytesIO

from .helpers.plugins.kerashelper import Helper


class KerasHelper(Helper):
    """A model is what ``get_weights`` of Keras returns: a list of arrays."""

    def increment_average(self, weights, weights_next, n, N=1):
        """Return the mean of ``n`` models, from that of ``n - 1`` and one more; from 0.4 on by ``n / N``."""
        return [x + (y - x) * _share(n, N) for x, y in zip(weights, weights_next)]

    def save_model(self, weights, path=None):
        """Write ``weights`` and return the path."""
        return self.save(weights, path)

    def load_model(self, path):
        """Return the weights in the file ``path``."""
        return self.load(path)

    def serialize_model_to_BytesIO(self, model):  # noqa: N802 (name of FEDn)
        """Return a binary file in memory that holds ``model``, at its start."""
        file = BytesIO()
        self.save(model, file)
        file.seek(0)
        return file

    def load_model_from_BytesIO(self, model_bytes):  # noqa: N802 (name of FEDn)
        """Return the weights in the bytes ``model_bytes``."""
        return self.load(BytesIO(model_bytes))


def _share(n, total):
    return 1.0 / n if total == 1 else n / total
