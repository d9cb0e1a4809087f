"""Split a table of patients over some sites: python data.py FOLDER --sites 3.

The measures are the breast cancer data that ship inside scikit-learn (Wolberg, Street and Mangasarian 1995): 569 real
patients. How long each was followed is made up, by a fixed seed, with a hazard that is larger for malignant tumours.
Writes ``site-1/patients.csv`` and so on; sites differ in size, and the first has more of the large tumours.
"""

import argparse
import csv
from pathlib import Path

import numpy as np

COLUMNS = ("mean radius", "mean texture", "mean smoothness")
_FOLLOWED_MONTHS = 60


def split(folder, sites=3, seed=0):
    """Write the files and return their folders, in order."""
    from sklearn.datasets import load_breast_cancer

    data = load_breast_cancer()
    wanted = [list(data.feature_names).index(name) for name in COLUMNS]
    random = np.random.default_rng(seed)
    malignant = 1 - data.target
    months = np.ceil(random.exponential(np.where(malignant == 1, 40.0, 160.0)))
    followed = random.integers(12, _FOLLOWED_MONTHS + 1, len(months))
    died = (months <= followed).astype(int)
    seen = np.minimum(months, followed).astype(int)
    order = np.argsort(-data.data[:, wanted[0]] + random.normal(0, 6, len(months)))
    rows = [[*(f"{value:.6g}" for value in data.data[i, wanted]), malignant[i], seen[i], died[i]] for i in order]
    cuts = np.cumsum(np.arange(1, sites) / sum(range(1, sites + 1)) * len(rows)).astype(int)
    header = [*(name.replace(" ", "_") for name in COLUMNS), "malignant", "months", "died"]
    folders = []
    for number, part in enumerate(np.split(np.array(rows, dtype=object), cuts), start=1):
        place = Path(folder) / f"site-{number}"
        place.mkdir(parents=True, exist_ok=True)
        with (place / "patients.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([header, *part.tolist()])
        folders.append(place)
    return folders


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--sites", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for place in split(arguments.folder, arguments.sites, arguments.seed):
        print(place / "patients.csv")


if __name__ == "__main__":
    main()
