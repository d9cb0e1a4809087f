"""What runs at each site: reads its patients and the step that is asked for, writes numbers about all of them together.

Input: ``patients.csv`` and ``input.json`` in $CA_INPUT_FOLDER (default /mnt/input). Output: ``result.json`` in
$CA_OUTPUT_FOLDER (default /mnt/output). No row leaves the site: what does are counts, sums, and one matrix of as many
rows as there are coefficients.

``input.json`` is one of

* ``{"step": "moments", "columns": [...]}``: of each column count, mean and sum of squared deviations;
* ``{"step": "newton", "outcome": "...", "columns": [...], "coefficients": [...]}``: of a logistic regression at these
  coefficients (the intercept first) the log-likelihood, its gradient and the information matrix;
* ``{"step": "events", "time": "...", "event": "..."}``: for each time how many had the event then, and how many left.
"""

import csv
import json
import os
from pathlib import Path

import numpy as np


def column(rows, name):
    """Return a column as float64[n]; a row in which it is empty is an error that names it."""
    try:
        return np.array([float(row[name]) for row in rows], dtype=np.float64)
    except KeyError:
        raise SystemExit(f"patients.csv has no column {name!r}; it has {', '.join(rows[0])}.") from None
    except ValueError as error:
        raise SystemExit(f"Column {name!r} of patients.csv should have numbers only: {error}.") from None


def moments(rows, step):
    """Count, mean and sum of squared deviations of each column."""
    found = {}
    for name in step["columns"]:
        values = column(rows, name)
        mean = float(values.mean())
        found[name] = {"count": len(values), "mean": mean, "deviations": float(((values - mean) ** 2).sum())}
    return found


def newton(rows, step):
    """Log-likelihood, gradient and information of a logistic regression at the given coefficients."""
    x = np.column_stack([np.ones(len(rows)), *(column(rows, name) for name in step["columns"])])
    y = column(rows, step["outcome"])
    linear = x @ np.array(step["coefficients"], dtype=np.float64)
    # log(1 + exp(z)) and the logistic function, without an overflow at either end.
    likelihood = float((y * linear - np.logaddexp(0.0, linear)).sum())
    expected = np.exp(-np.logaddexp(0.0, -linear))
    information = (x * (expected * (1.0 - expected))[:, None]).T @ x
    return {
        "count": len(rows),
        "log_likelihood": likelihood,
        "gradient": (x.T @ (y - expected)).tolist(),
        "information": information.tolist(),
    }


def events(rows, step):
    """How many had the event, and how many left without it, at each time."""
    times, happened = column(rows, step["time"]), column(rows, step["event"]) != 0
    return [
        {
            "time": float(time),
            "events": int(happened[times == time].sum()),
            "left": int((~happened[times == time]).sum()),
        }
        for time in np.unique(times)
    ]


def main():
    """Do the step that is asked for."""
    folder = Path(os.environ.get("CA_INPUT_FOLDER", "/mnt/input"))
    step = json.loads((folder / "input.json").read_text())
    with (folder / "patients.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        raise SystemExit("The selection has no patients.")
    steps = {"moments": moments, "newton": newton, "events": events}
    if step.get("step") not in steps:
        raise SystemExit(f"step should be one of {', '.join(steps)} but is {step.get('step')!r}.")
    result = steps[step["step"]](rows, step)
    output = Path(os.environ.get("CA_OUTPUT_FOLDER", "/mnt/output"))
    (output / "result.json").write_text(json.dumps(result))
    print(f"{step['step']}: {len(rows)} patients")


if __name__ == "__main__":
    main()
