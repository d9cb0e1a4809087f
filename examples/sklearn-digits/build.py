"""Write the seed model, from which the first round starts: python build.py [SEED_FILE]."""

import sys

import classifier


def main(seed_file="seed.npz"):
    """Write an untrained model; every call writes the same one."""
    classifier.save_model(seed_file, classifier.new_model())
    print(f"wrote {seed_file}")


if __name__ == "__main__":
    main(*sys.argv[1:])
