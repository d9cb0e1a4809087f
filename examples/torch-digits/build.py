"""Write the seed model, from which the first round starts: python build.py [SEED_FILE]."""

import sys

import network


def main(seed_file="seed.safetensors"):
    """Write an untrained model; every call writes the same one."""
    network.save_network(seed_file, network.new_network(seed=0))
    print(f"wrote {seed_file}")


if __name__ == "__main__":
    main(*sys.argv[1:])
