"""The functions with which an entry point meets its contract."""

import importlib
import json

_PLUGINS = __package__ + ".plugins."


def get_helper(helper_module_name):
    """Return a helper by the name of its plug-in: ``numpyhelper``, ``binaryhelper``, ``androidhelper`` and so on."""
    return importlib.import_module(_PLUGINS + helper_module_name).Helper()


def save_metadata(metadata, filename):
    """Write ``metadata`` (JSON values by name, ``num_examples`` among them) beside the model ``filename``."""
    with open(f"{filename}-metadata", "w") as file:
        json.dump(metadata, file)


def load_metadata(filename):
    """Return what is written beside the model ``filename``: of the model that came in, the client settings."""
    with open(f"{filename}-metadata") as file:
        return json.load(file)


def save_metrics(metrics, filename):
    """Write ``metrics``, JSON values by name, to ``filename``."""
    with open(filename, "w") as file:
        json.dump(metrics, file)
