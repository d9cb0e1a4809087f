"""Train the global model on this site's digits: python train.py MODEL_IN MODEL_OUT.

Reads the site's data from the .npz file in $RUNNEL_DATA (x, y) and, if they are there, the session's settings from
MODEL_IN-metadata: epochs, lr, alpha, seed.
"""

import json
import os
import sys
from pathlib import Path

import classifier
import numpy as np

SETTINGS = ("epochs", "lr", "alpha", "seed")


def read_settings(model_in):
    """Return the settings of the session that this training knows."""
    try:
        settings = json.loads(Path(f"{model_in}-metadata").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return {name: settings[name] for name in SETTINGS if name in settings}


def main(model_in, model_out, data_file):
    """Train on the data file and write the new model, and beside it how many examples it has seen."""
    with np.load(data_file) as data:
        x, y = data["x"], data["y"]
    model = classifier.train(classifier.load_model(model_in), x, y, **read_settings(model_in))
    classifier.save_model(model_out, model)
    metrics = classifier.evaluate(model, x, y)
    # num_examples is this site's weight in the mean; the other numbers are shown as its training metrics.
    metadata = {"num_examples": len(x), "training_loss": metrics["loss"]}
    Path(f"{model_out}-metadata").write_text(json.dumps(metadata), encoding="utf-8")
    print(f"trained on {len(x)} digits, loss {metrics['loss']:.4f}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], os.environ["RUNNEL_DATA"])
