"""Means, a logistic regression and a survival curve over all sites, whose patients stay where they are.

    python analyse.py IMAGE [--url http://127.0.0.1:7480] [--site NAME ...] [--minimum N]

Prints one JSON object. With --minimum a site that fails is left out of the step, and named on standard error.
"""

import argparse
import json
import os
import sys

import pooling

from runnel.sdk import Network

COLUMNS = ["mean_radius", "mean_texture", "mean_smoothness"]
SELECTION = "{ patients { mean_radius mean_texture mean_smoothness malignant months died } }"


class Sites:
    """Asks all sites the same and returns their answers."""

    def __init__(self, network, image, sites, minimum):
        self._network = network
        self._options = {"image": image, "sites": sites, "minimum": minimum, "select": SELECTION}

    def __call__(self, **step):
        results = self._network.run(input=step, **self._options)
        for site, why in results.failed.items():
            print(f"{step['step']} without {site}: {why}", file=sys.stderr)
        print(f"{step['step']}: {len(results.done)} sites", file=sys.stderr)
        return list(results.json("result.json").values())


def analyse(ask):
    """Return all three."""

    def newton(coefficients):
        return ask(step="newton", outcome="malignant", columns=COLUMNS, coefficients=coefficients)

    return {
        "moments": pooling.pooled_moments(ask(step="moments", columns=COLUMNS)),
        "regression": pooling.newton_fit(newton, COLUMNS),
        "survival": pooling.kaplan_meier(ask(step="events", time="months", event="died")),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image")
    parser.add_argument("--url", default=os.environ.get("RUNNEL_URL", "http://127.0.0.1:7480"))
    parser.add_argument("--site", action="append")
    parser.add_argument("--minimum", type=int)
    arguments = parser.parse_args()
    with Network(arguments.url, token=os.environ.get("RUNNEL_TOKEN")) as network:
        ask = Sites(network, arguments.image, arguments.site or "*", arguments.minimum)
        print(json.dumps(analyse(ask), indent=2))


if __name__ == "__main__":
    main()
