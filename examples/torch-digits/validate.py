"""Measure the global model on this site's held-out digits: python validate.py MODEL_IN VALIDATION_JSON.

Reads x_val and y_val from the .npz file in $RUNNEL_DATA; they are never trained on.
"""

import json
import os
import sys
from pathlib import Path

import network
import numpy as np


def main(model_in, validation_json, data_file):
    """Write accuracy, loss and the number of examples, by which the network weights them."""
    with np.load(data_file) as data:
        x, y = data["x_val"], data["y_val"]
    metrics = {**network.evaluate(network.load_network(model_in), x, y), "num_examples": len(x)}
    Path(validation_json).write_text(json.dumps(metrics), encoding="utf-8")
    print(f"accuracy {metrics['accuracy']:.3f} on {len(x)} digits")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], os.environ["RUNNEL_DATA"])
