"""From the sites' numbers to those of all patients together: the same as if their rows lay in one table."""

import numpy as np


def pooled_moments(sites):
    """Return count, mean and variance (divided by n - 1) of each column.

    Means and squared deviations of two groups give those of both without their sums, which would lose digits
    (Chan, Golub and LeVeque 1983).
    """
    pooled = {}
    for name in sites[0]:
        count, mean, deviations = 0, 0.0, 0.0
        for site in sites:
            other = site[name]
            both = count + other["count"]
            apart = other["mean"] - mean
            deviations += other["deviations"] + apart**2 * count * other["count"] / both
            mean += apart * other["count"] / both
            count = both
        pooled[name] = {
            "count": count,
            "mean": mean,
            "variance": deviations / (count - 1) if count > 1 else float("nan"),
        }
    return pooled


def newton_fit(ask, columns, *, tolerance=1e-10, most_steps=50):
    """Fit a logistic regression by Newton's method and return its coefficients and their standard errors.

    The log-likelihood of all patients is the sum of the sites', and so are its derivatives; each step is that of the
    pooled data.

    Args:
        ask: takes the coefficients, returns what each site's ``newton`` step gave.
        columns: names of the explaining columns.
        tolerance: ends when no coefficient moves further than this.
        most_steps: ends with an error when it takes more.
    """
    coefficients = np.zeros(len(columns) + 1)
    for step in range(1, most_steps + 1):
        sites = ask(coefficients.tolist())
        gradient = sum(np.array(site["gradient"]) for site in sites)
        information = sum(np.array(site["information"]) for site in sites)
        move = np.linalg.solve(information, gradient)
        coefficients = coefficients + move
        if np.abs(move).max() <= tolerance:
            errors = np.sqrt(np.diag(np.linalg.inv(information)))
            names = ["intercept", *columns]
            return {
                name: {"coefficient": float(value), "standard_error": float(error)}
                for name, value, error in zip(names, coefficients, errors, strict=True)
            } | {"steps": step}
    raise RuntimeError(
        f"Newton's method still moves after {most_steps} steps; perhaps a column tells the outcome alone."
    )


def kaplan_meier(sites):
    """Return ``[(time, at risk, events, survival)]`` at each time with an event (Kaplan and Meier 1958)."""
    events, left = {}, {}
    for site in sites:
        for row in site:
            events[row["time"]] = events.get(row["time"], 0) + row["events"]
            left[row["time"]] = left.get(row["time"], 0) + row["left"]
    at_risk = sum(events.values()) + sum(left.values())
    survival, curve = 1.0, []
    for time in sorted(events):
        if events[time]:
            survival *= 1.0 - events[time] / at_risk
            curve.append((time, at_risk, events[time], survival))
        at_risk -= events[time] + left[time]
    return curve
