"""The 2NN of McMahan et al. 2017, "Communication-Efficient Learning of Deep Networks from Decentralized Data".

784 pixels, two hidden layers of 200 units (ReLU), 10 digits, softmax cross-entropy: 199,210 parameters, in plain numpy.
A model is a dict of float32 arrays: ``w1`` [784, 200], ``b1`` [200], ``w2`` [200, 200], ``b2`` [200], ``w3`` [200, 10],
``b3`` [10]. Images are uint8[n, 784] in files and scaled to 0..1 by :func:`scaled`.
"""

from itertools import pairwise

import numpy as np

SIZES = (784, 200, 200, 10)
LAYERS = len(SIZES) - 1


def new_model(seed=0):
    """Return a model with random weights (He et al. 2015) and biases of zero."""
    random = np.random.default_rng(seed)
    model = {}
    for layer, (inputs, outputs) in enumerate(pairwise(SIZES), start=1):
        model[f"w{layer}"] = random.normal(0.0, np.sqrt(2.0 / inputs), (inputs, outputs)).astype(np.float32)
        model[f"b{layer}"] = np.zeros(outputs, np.float32)
    return model


def load_model(path):
    """Read a model from an .npz file."""
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def save_model(path, model):
    """Write a model as an .npz file, not compressed."""
    np.savez(path, **model)


def scaled(images):
    """Return uint8[n, 784] as float32 in 0..1."""
    return images.astype(np.float32) / np.float32(255.0)


def forward(model, x):
    """Return the inputs of each layer (the first is x) and the log-probabilities [n, 10]."""
    inputs = [x]
    for layer in range(1, LAYERS):
        inputs.append(np.maximum(inputs[-1] @ model[f"w{layer}"] + model[f"b{layer}"], 0.0))
    scores = inputs[-1] @ model[f"w{LAYERS}"] + model[f"b{LAYERS}"]
    scores = scores - scores.max(axis=1, keepdims=True)
    return inputs, scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))


def train(model, x, y, *, epochs=1, lr=0.1, batch_size=10, seed=0):
    """Return a new model after ``epochs`` passes of minibatch gradient descent: E, the step and B of the paper.

    x: float32[n, 784] in 0..1; y: integers[n] in 0..9; ``model`` is not modified. The order of the examples depends on
    ``seed`` (an integer or some) only, so the same call gives the same model.
    """
    model = {name: array.copy() for name, array in model.items()}
    random = np.random.default_rng(seed)
    for _ in range(epochs):
        order = random.permutation(len(x))
        for start in range(0, len(x), batch_size):
            _step(model, x[order[start : start + batch_size]], y[order[start : start + batch_size]], lr)
    return model


def _step(model, x, y, lr):
    inputs, log_probabilities = forward(model, x)
    # The gradient of the cross-entropy by the scores: probabilities less the truth.
    gradient = np.exp(log_probabilities)
    gradient[np.arange(len(y)), y] -= 1.0
    gradient /= len(y)
    for layer in range(LAYERS, 0, -1):
        weights, below = model[f"w{layer}"], inputs[layer - 1]
        gradient_below = (gradient @ weights.T) * (below > 0.0) if layer > 1 else None
        weights -= lr * (below.T @ gradient)
        model[f"b{layer}"] -= lr * gradient.sum(axis=0)
        gradient = gradient_below


def evaluate(model, x, y):
    """Return accuracy and mean cross-entropy of the model on x float32[n, 784], y integers[n], as plain floats."""
    _, log_probabilities = forward(model, x)
    return {
        "accuracy": float(np.mean(log_probabilities.argmax(axis=1) == y)),
        "loss": float(-np.mean(log_probabilities[np.arange(len(y)), y])),
    }
