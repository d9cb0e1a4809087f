"""A small neural network in plain numpy: 64 pixels, 32 hidden units (ReLU), 10 digits.

A model is a dict of arrays: ``w1`` float32[64, 32], ``b1`` float32[32], ``w2`` float32[32, 10], ``b2`` float32[10].
"""

import numpy as np

PIXELS, HIDDEN, DIGITS = 64, 32, 10


def new_model(seed=0):
    """Return a model with random weights (He et al. 2015) and biases of zero."""
    random = np.random.default_rng(seed)
    return {
        "w1": random.normal(0.0, np.sqrt(2.0 / PIXELS), (PIXELS, HIDDEN)).astype(np.float32),
        "b1": np.zeros(HIDDEN, np.float32),
        "w2": random.normal(0.0, np.sqrt(2.0 / HIDDEN), (HIDDEN, DIGITS)).astype(np.float32),
        "b2": np.zeros(DIGITS, np.float32),
    }


def load_model(path):
    """Read a model from an .npz file."""
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def save_model(path, model):
    """Write a model as an .npz file, not compressed."""
    np.savez(path, **model)


def forward(model, x):
    """Return the hidden activations [n, 32] and log-probabilities [n, 10] for x float32[n, 64]."""
    hidden = np.maximum(x @ model["w1"] + model["b1"], 0.0)
    scores = hidden @ model["w2"] + model["b2"]
    scores = scores - scores.max(axis=1, keepdims=True)
    return hidden, scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))


def train(model, x, y, *, epochs=5, lr=0.3, batch_size=8, seed=0):
    """Return a new model after ``epochs`` passes of minibatch gradient descent on the cross-entropy.

    x: float32[n, 64] in 0..1; y: int64[n] in 0..9; ``model`` is not modified. The order of the examples depends on
    ``seed`` only, so the same call gives the same model.
    """
    model = {name: array.copy() for name, array in model.items()}
    random = np.random.default_rng(seed)
    for _ in range(epochs):
        order = random.permutation(len(x))
        for start in range(0, len(x), batch_size):
            batch = order[start : start + batch_size]
            hidden, log_probabilities = forward(model, x[batch])
            # The gradient of the cross-entropy by the scores: probabilities less the truth.
            by_scores = np.exp(log_probabilities)
            by_scores[np.arange(len(batch)), y[batch]] -= 1.0
            by_scores /= len(batch)
            by_hidden = (by_scores @ model["w2"].T) * (hidden > 0.0)
            model["w2"] -= lr * (hidden.T @ by_scores)
            model["b2"] -= lr * by_scores.sum(axis=0)
            model["w1"] -= lr * (x[batch].T @ by_hidden)
            model["b1"] -= lr * by_hidden.sum(axis=0)
    return model


def evaluate(model, x, y):
    """Return accuracy and mean cross-entropy of the model on x float32[n, 64], y int64[n], as plain floats."""
    _, log_probabilities = forward(model, x)
    return {
        "accuracy": float(np.mean(log_probabilities.argmax(axis=1) == y)),
        "loss": float(-np.mean(log_probabilities[np.arange(len(y)), y])),
    }
