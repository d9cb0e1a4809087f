"""A model of several arrays as ``.npz``; NVFlare's own persistor for numpy knows one array."""

import numpy as np
from nvflare.app_common.abstract.model import ModelLearnableKey, make_model_learnable
from nvflare.app_common.abstract.model_persistor import ModelPersistor


class ArraysPersistor(ModelPersistor):
    """Begins with the model at ``seed`` and writes each new one to ``model``."""

    def __init__(self, seed: str, model: str):
        super().__init__()
        self.seed = seed
        self.model = model

    def load_model(self, fl_ctx):
        """Return the first model."""
        with np.load(self.seed) as arrays:
            return make_model_learnable(weights={name: arrays[name] for name in arrays.files}, meta_props={})

    def save_model(self, model, fl_ctx):
        """Write a new model over the one before, as NVFlare's own does."""
        np.savez(self.model, **model[ModelLearnableKey.WEIGHTS])
