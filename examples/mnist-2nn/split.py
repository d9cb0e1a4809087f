"""Split MNIST over some sites as McMahan et al. 2017 do: python split.py --data FOLDER --clients 100 --out SITES.

FOLDER has MNIST's four IDX files, gzipped or not. SITES gets ``site-1.npz`` and so on, with ``x`` uint8[n, 784] and
``y`` uint8[n], and ``test.npz`` with the 10,000 test images.
"""

import argparse
from pathlib import Path

import idx
import numpy as np

SHARDS_PER_SITE = 2


def iid_parts(labels, clients, seed=0):
    """Return one array of example numbers for each client: shuffled, then dealt out evenly."""
    return np.array_split(np.random.default_rng(seed).permutation(len(labels)), clients)


def shard_parts(labels, clients, seed=0):
    """Return one array of example numbers for each client: two shards of examples sorted by label.

    With the 60,000 images of MNIST and 100 clients these are the paper's 200 shards of 300: most see two digits.
    """
    by_label = np.argsort(labels, kind="stable")
    shards = np.array_split(by_label, SHARDS_PER_SITE * clients)
    dealt = np.random.default_rng(seed).permutation(len(shards)).reshape(clients, SHARDS_PER_SITE)
    return [np.concatenate([shards[shard] for shard in pair]) for pair in dealt]


def split(data_dir, out_dir, clients, *, non_iid=False, seed=0):
    """Write the files into ``out_dir``, made if it is not there, and return the sites' paths in order."""
    images, labels = idx.read_part(data_dir, "train")
    if not 1 <= clients <= len(labels) // SHARDS_PER_SITE:
        raise ValueError(f"clients should be from 1 to {len(labels) // SHARDS_PER_SITE} but is {clients}")
    parts = (shard_parts if non_iid else iid_parts)(labels, clients, seed)
    folder = Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    test_images, test_labels = idx.read_part(data_dir, "t10k")
    np.savez(folder / "test.npz", x=test_images, y=test_labels)
    sites = []
    for number, part in enumerate(parts, start=1):
        sites.append(folder / f"site-{number}.npz")
        np.savez(sites[-1], x=images[part], y=labels[part])
    return sites


def main():
    parser = argparse.ArgumentParser(description="Split MNIST over some sites.")
    parser.add_argument("--data", type=Path, required=True, help="folder with MNIST's IDX files, gzipped or not")
    parser.add_argument("--clients", type=int, default=100, help="number of sites (default 100, as in the paper)")
    parser.add_argument("--out", type=Path, required=True, help="folder for site-1.npz, … and test.npz")
    parser.add_argument(
        "--non-iid", action="store_true", help="two shards of sorted examples per site, as in the paper"
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    sites = split(options.data, options.out, options.clients, non_iid=options.non_iid, seed=options.seed)
    print(f"wrote {len(sites)} sites and test.npz to {options.out}")


if __name__ == "__main__":
    main()
