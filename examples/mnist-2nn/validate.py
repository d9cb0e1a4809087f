"""Measure the global model: python validate.py MODEL_IN VALIDATION_JSON.

On the test images of MNIST where a site has them (a database named ``test``: $RUNNEL_DATA_TEST), as in the paper;
otherwise on the site's own training images in $RUNNEL_DATA. The JSON says which, as ``measured_on``.
"""

import json
import os
import sys
from pathlib import Path

import network
import numpy as np


def main(model_in, validation_json, data_file, measured_on):
    """Write accuracy, loss and the number of examples, by which the network weights them."""
    with np.load(data_file) as data:
        x, y = network.scaled(data["x"]), data["y"]
    metrics = network.evaluate(network.load_model(model_in), x, y)
    with Path(validation_json).open("w", encoding="utf-8") as file:
        json.dump({**metrics, "num_examples": len(x), "measured_on": measured_on}, file)
    print(f"accuracy {metrics['accuracy']:.4f} on {len(x)} {measured_on} images")


if __name__ == "__main__":
    if "RUNNEL_DATA_TEST" in os.environ:
        main(sys.argv[1], sys.argv[2], os.environ["RUNNEL_DATA_TEST"], "test")
    else:
        main(sys.argv[1], sys.argv[2], os.environ["RUNNEL_DATA"], "training")
