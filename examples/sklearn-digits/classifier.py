"""Logistic regression of scikit-learn, trained bit by bit: 64 pixels, 10 digits.

A model is two arrays: ``coef`` float64[10, 64] and ``intercept`` float64[10].
"""

import numpy as np
from sklearn.linear_model import SGDClassifier
from sklearn.metrics import log_loss

PIXELS = 64
DIGITS = np.arange(10)


def load_model(path):
    """Read a model from an .npz file."""
    with np.load(path) as file:
        return {name: file[name] for name in ("coef", "intercept")}


def save_model(path, model):
    """Write a model as an .npz file."""
    np.savez(path, **model)


def new_model():
    """Return a model that finds all digits equally likely."""
    return {"coef": np.zeros((len(DIGITS), PIXELS)), "intercept": np.zeros(len(DIGITS))}


def classifier_of(model, *, lr=0.05, alpha=1e-4, seed=0):
    """Return a classifier with the coefficients of ``model``; one that has seen no other data than went into them.

    It knows all ten digits, also at a site that has none of some.
    """
    classifier = SGDClassifier(loss="log_loss", learning_rate="constant", eta0=lr, alpha=alpha, random_state=seed)
    # Its arrays are made by the first partial_fit, and that example is forgotten with what replaces them.
    classifier.partial_fit(np.zeros((1, PIXELS)), DIGITS[:1], classes=DIGITS)
    classifier.coef_[:], classifier.intercept_[:] = model["coef"], model["intercept"]
    return classifier


def train(model, x, y, *, epochs=5, lr=0.05, alpha=1e-4, seed=0):
    """Return a new model after ``epochs`` passes of stochastic gradient descent on x [n, 64] and y [n]."""
    classifier = classifier_of(model, lr=lr, alpha=alpha, seed=seed)
    random = np.random.default_rng(seed)
    for _ in range(epochs):
        order = random.permutation(len(x))
        classifier.partial_fit(x[order].astype(np.float64), y[order])
    return {"coef": classifier.coef_, "intercept": classifier.intercept_}


def evaluate(model, x, y):
    """Return accuracy and mean cross-entropy of the model on x [n, 64], y [n], as plain floats."""
    classifier = classifier_of(model)
    return {
        "accuracy": float(classifier.score(x, y)),
        "loss": float(log_loss(y, classifier.predict_proba(x.astype(np.float64)), labels=DIGITS)),
    }
