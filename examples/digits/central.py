"""What federated training is measured against: all data in one place, and one site alone.

    python central.py FOLDER --passes 50 [--model MODEL.npz]

FOLDER is what data.py wrote. Prints one line of JSON: ``accuracy_central``, ``accuracy_alone`` and, with --model, the
``accuracy`` of that model, all on test.npz.
"""

import argparse
import json
from pathlib import Path

import network
import numpy as np


def read_sites(folder):
    """Return the training part of each site in ``folder`` as (x, y), in the order of the sites' numbers."""
    paths = sorted(Path(folder).glob("site-*.npz"), key=lambda path: int(path.stem.removeprefix("site-")))
    if not paths:
        raise FileNotFoundError(f"there is no site-1.npz in {folder}: run data.py first")
    sites = []
    for path in paths:
        with np.load(path) as data:
            sites.append((data["x"], data["y"]))
    return sites


def train_central(folder, passes, **settings):
    """Return the model trained on all sites' training data together.

    Args:
        folder: what data.py wrote.
        passes: over the data: rounds times the epochs of a round, for as many as federated training makes.
        settings: lr, batch_size, seed as in train.py.
    """
    sites = read_sites(folder)
    x, y = (np.concatenate(arrays) for arrays in zip(*sites, strict=True))
    return network.train(network.new_model(), x, y, epochs=passes, **settings)


def train_alone(folder, passes, site=1, **settings):
    """Return the model that site number ``site`` would have without the others, after as many passes over its data."""
    x, y = read_sites(folder)[site - 1]
    return network.train(network.new_model(), x, y, epochs=passes, **settings)


def evaluate(model, data):
    """Return accuracy and loss of ``model`` (arrays or an .npz file) on ``data`` (an .npz file with x and y)."""
    if not isinstance(model, dict):
        model = network.load_model(model)
    with np.load(data) as file:
        return network.evaluate(model, file["x"], file["y"])


def main():
    parser = argparse.ArgumentParser(description="Accuracy on test.npz of central training and of one site alone.")
    parser.add_argument("folder", type=Path, help="what data.py wrote")
    parser.add_argument("--passes", type=int, default=50, help="over the data: rounds times epochs (default 50)")
    parser.add_argument("--settings", type=json.loads, default={}, help="JSON with lr, batch_size, seed")
    parser.add_argument("--model", type=Path, help="a federated model to measure as well")
    options = parser.parse_args()
    test = options.folder / "test.npz"
    settings = {name: value for name, value in options.settings.items() if name in ("lr", "batch_size", "seed")}
    result = {
        "accuracy_central": evaluate(train_central(options.folder, options.passes, **settings), test)["accuracy"],
        "accuracy_alone": evaluate(train_alone(options.folder, options.passes, **settings), test)["accuracy"],
    }
    if options.model:
        result["accuracy"] = evaluate(options.model, test)["accuracy"]
    print(json.dumps(result))


if __name__ == "__main__":
    main()
