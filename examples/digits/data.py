"""Split the handwritten digits that ship inside scikit-learn over some sites: python data.py FOLDER --clients 6.

Writes ``site-1.npz`` and so on, one for each site: ``x``, ``y`` to train on, ``x_val``, ``y_val`` held out at the site
(a fifth of it). ``test.npz`` (``x``, ``y``: a fifth of all digits) belongs to no site; only the global model is
measured on it. ``x`` is float32[n, 64] in 0..1, ``y`` int64[n] in 0..9.
"""

import argparse
from pathlib import Path

import numpy as np

TEST_SHARE = 0.2
VALIDATION_SHARE = 0.2
MIN_EXAMPLES = 10


def split(out_dir, clients, *, non_iid=False, alpha=0.3, seed=0):
    """Write the files into ``out_dir`` and return the sites' paths, in order.

    Args:
        out_dir: folder, made if it is not there.
        clients: number of sites, at least 1.
        non_iid: False: each site has the same mix of digits. True: each digit is shared out by a Dirichlet distribution
            (Hsu et al. 2019), so sites differ in size and in what they have seen.
        alpha: of that distribution; the smaller, the more the sites differ.
        seed: the same arguments give the same files.
    """
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    x, y = (x / 16.0).astype(np.float32), y.astype(np.int64)
    random = np.random.default_rng(seed)
    order = random.permutation(len(x))
    test, rest = np.split(order, [int(len(x) * TEST_SHARE)])
    most = len(rest) // MIN_EXAMPLES
    if not 1 <= clients <= most:
        raise ValueError(f"clients should be from 1 to {most} but is {clients}")
    parts = _dirichlet(rest, y, clients, alpha, random) if non_iid else np.array_split(rest, clients)
    folder = Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "test.npz", x=x[test], y=y[test])
    sites = []
    for number, part in enumerate(parts, start=1):
        held_out, training = np.split(part, [max(1, int(len(part) * VALIDATION_SHARE))])
        sites.append(folder / f"site-{number}.npz")
        np.savez(sites[-1], x=x[training], y=y[training], x_val=x[held_out], y_val=y[held_out])
    return sites


def _dirichlet(rest, y, clients, alpha, random):
    """Share out the examples ``rest`` digit by digit; every site ends with at least MIN_EXAMPLES."""
    parts = [[] for _ in range(clients)]
    for digit in range(10):
        examples = rest[y[rest] == digit]
        shares = random.dirichlet(np.full(clients, alpha))
        cuts = (np.cumsum(shares)[:-1] * len(examples)).astype(int)
        for part, some in zip(parts, np.split(examples, cuts), strict=True):
            part.extend(some.tolist())
    for part in parts:
        while len(part) < MIN_EXAMPLES:
            part.append(max(parts, key=len).pop())
    return [random.permutation(np.array(part, dtype=np.int64)) for part in parts]


def main():
    parser = argparse.ArgumentParser(description="Split scikit-learn's handwritten digits over some sites.")
    parser.add_argument("folder", type=Path, help="where site-1.npz, … and test.npz go")
    parser.add_argument("--clients", type=int, default=6, help="number of sites (default 6)")
    parser.add_argument("--non-iid", action="store_true", help="sites that differ, by a Dirichlet distribution")
    parser.add_argument("--alpha", type=float, default=0.3, help="of that distribution (default 0.3)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    sites = split(options.folder, options.clients, non_iid=options.non_iid, alpha=options.alpha, seed=options.seed)
    for site in sites:
        with np.load(site) as data:
            print(f"{site}: {len(data['x'])} to train, {len(data['x_val'])} to validate")


if __name__ == "__main__":
    main()
