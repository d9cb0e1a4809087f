"""A new compute package that works, for its author to change."""

from __future__ import annotations

from pathlib import Path

from runnel.common.errors import Conflict

_TRAIN = '''\
"""Train on this site's data: python train.py MODEL_IN MODEL_OUT."""

import json
import os
import sys

import numpy as np


def read_settings(model_in):
    """Return what the session passes on to all clients (--client-settings), an empty dict if nothing."""
    try:
        with open(model_in + "-metadata") as file:
            return json.load(file)
    except FileNotFoundError:
        return {}


def train(weight, bias, x, y, lr, epochs):
    """Logistic regression by gradient descent: x float[n, features], y 0 or 1 [n]."""
    for _ in range(epochs):
        error = 1.0 / (1.0 + np.exp(-(x @ weight + bias))) - y
        weight = weight - lr * (x.T @ error) / len(y)
        bias = bias - lr * error.mean()
    return weight, bias


def main(model_in, model_out):
    settings = read_settings(model_in)
    with np.load(model_in) as model:
        weight, bias = model["weight"], model["bias"]
    with np.load(os.environ["RUNNEL_DATA"]) as data:
        x, y = data["x"], data["y"]
    new_weight, new_bias = train(weight, bias, x, y, settings.get("lr", 0.5), settings.get("epochs", 20))
    # Names, shapes and dtypes have to stay those of the model that came in.
    np.savez(model_out, weight=new_weight.astype(weight.dtype), bias=new_bias.astype(bias.dtype))
    # num_examples is the weight of this site in the mean; other numbers are shown as metrics of the training.
    with open(model_out + "-metadata", "w") as file:
        json.dump({"num_examples": len(y)}, file)
    print(f"trained on {len(y)} examples")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
'''

_VALIDATE = '''\
"""Measure the model on this site's data: python validate.py MODEL_IN VALIDATION_JSON."""

import json
import os
import sys

import numpy as np


def main(model_in, validation_json):
    with np.load(model_in) as model:
        weight, bias = model["weight"], model["bias"]
    with np.load(os.environ["RUNNEL_DATA"]) as data:
        x, y = data["x"], data["y"]
    score = x @ weight + bias
    metrics = {
        "accuracy": float(np.mean((score > 0) == (y > 0.5))),
        "loss": float(np.mean(np.logaddexp(0.0, score) - y * score)),
        "num_examples": len(y),
    }
    with open(validation_json, "w") as file:
        json.dump(metrics, file)
    print(metrics)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
'''

_BUILD = '''\
"""Write the seed model, from which the first round starts: python build.py SEED."""

import sys

import numpy as np

FEATURES = 8


def main(seed="seed.npz"):
    np.savez(seed, weight=np.zeros(FEATURES, np.float32), bias=np.zeros((), np.float32))
    print(f"wrote {seed}")


if __name__ == "__main__":
    main(*sys.argv[1:])
'''

_MANIFEST = """\
name: "{name}"
version: "0.1"

# Called in this folder, with these arguments appended:
entry_points:
  train: python train.py        # MODEL_IN MODEL_OUT
  validate: python validate.py  # MODEL_IN VALIDATION_JSON
  build: python build.py        # SEED

# Each client makes an environment from it, once. Without the file (or with null) it uses its own interpreter.
requirements: requirements.txt
"""

_IGNORE = """\
# What the package does not carry, as in a .gitignore. Data and models have no place in it.
*.npz
README.md
"""

_README = """\
# {name}

A compute package: logistic regression in numpy, to be changed into yours.

| file | what it does |
|---|---|
| `train.py` | reads the global model and the site's data, writes the site's model and `num_examples` |
| `validate.py` | measures the global model on the site's data, writes numbers as JSON |
| `build.py` | writes the seed model |
| `runnel.yaml` | names the package and its commands |
| `requirements.txt` | what it needs from the package index |

The site's data is the file or folder in the environment variable `RUNNEL_DATA`. Here that is an `.npz` file with
`x` (float, examples by features) and `y` (0 or 1). To try it out, make one:

    python -c "import numpy as np; r = np.random.default_rng(0); x = r.normal(size=(200, 8)); \\
    np.savez('data.npz', x=x, y=(x.sum(1) > 0).astype('float32'))"
    python build.py seed.npz
    RUNNEL_DATA=data.npz python train.py seed.npz trained.npz
    RUNNEL_DATA=data.npz python validate.py trained.npz validation.json

Then, from inside this folder (the archive goes to the folder above):

    runnel package check . --data default=data.npz
    runnel package build .
    runnel session start --package ../{name}.tar.gz --seed seed.npz --rounds 5 --watch
"""


def write_template(folder: Path) -> tuple[Path, ...]:
    """Write a small working package into ``folder``, which is made if it is not there, and return the new files.

    It is logistic regression in numpy on an ``.npz`` file with ``x`` and ``y``; the package takes the folder's name.

    Raises:
        Conflict: one of the files exists already; then none is written.
    """
    name = "".join(
        char if char.isascii() and (char.isalnum() or char in "._-") else "-" for char in folder.resolve().name
    )
    name = name.strip("._-")[:64] or "package"
    contents = {
        "train.py": _TRAIN,
        "validate.py": _VALIDATE,
        "build.py": _BUILD,
        "runnel.yaml": _MANIFEST.format(name=name),
        "requirements.txt": "numpy>=1.26\n",
        "README.md": _README.format(name=name),
        ".runnelignore": _IGNORE,
    }
    if folder.exists() and not folder.is_dir():
        raise Conflict(f"{folder} is a file.", hint="Name a folder.", path=str(folder))
    taken = sorted(file for file in contents if (folder / file).exists() or (folder / file).is_symlink())
    if taken:
        raise Conflict(
            f"{folder} has {', '.join(taken)} already; nothing was written.",
            hint="Choose a new folder.",
            path=str(folder),
        )
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in contents.items():
        with (folder / file).open("x", encoding="utf-8", newline="\n") as new:
            new.write(content)
    return tuple(folder / file for file in contents)
