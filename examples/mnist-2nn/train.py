"""Train the global model on this site's images: python train.py MODEL_IN MODEL_OUT.

Reads the site's data from the .npz file in $RUNNEL_DATA (x, y; split.py writes such files) and, if they are there, the
session's settings from MODEL_IN-metadata: epochs (E of the paper, 1), batch_size (B, 10), lr (0.1), seed (0). The order
of the images depends on the seed and the round.
"""

import json
import os
import sys
from pathlib import Path

import network
import numpy as np

SETTINGS = ("epochs", "lr", "batch_size", "seed")


def read_settings(model_in):
    """Return the settings of the session that this training knows."""
    try:
        with Path(f"{model_in}-metadata").open(encoding="utf-8") as file:
            settings = json.load(file)
    except FileNotFoundError:
        return {}
    return {name: settings[name] for name in SETTINGS if name in settings}


def main(model_in, model_out, data_file, round_number=0):
    """Train on the data file and write the new model, and beside it how many examples it has seen."""
    with np.load(data_file) as data:
        x, y = network.scaled(data["x"]), data["y"]
    settings = read_settings(model_in)
    # Shuffled anew in each round, and the same when the same round is trained again.
    settings["seed"] = (settings.get("seed", 0), round_number)
    model = network.train(network.load_model(model_in), x, y, **settings)
    network.save_model(model_out, model)
    metrics = network.evaluate(model, x, y)
    with Path(f"{model_out}-metadata").open("w", encoding="utf-8") as file:
        # num_examples is this site's weight in the mean; the other numbers are shown as its training metrics.
        json.dump({"num_examples": len(x), "training_loss": metrics["loss"]}, file)
    print(f"trained on {len(x)} images, loss {metrics['loss']:.4f}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], os.environ["RUNNEL_DATA"], int(os.environ.get("RUNNEL_ROUND", "0")))
