#!/usr/bin/env bash
# The image that tests of containers build on: a small Debian with Python, numpy and pip, made by debootstrap from the
# mirror that this machine uses, for no registry of images may be reachable. It is kept as a tar file in a cache and
# given to the engine at DOCKER_HOST if that does not have it. Prints the name of the image.
#
#   tools/base_image.sh [SUITE]
set -euo pipefail

suite="${1:-bookworm}"
packages=python3,python3-numpy,python3-pip
cache="${XDG_CACHE_HOME:-$HOME/.cache}/runnel-tests"
# Another list of packages is another image.
key="$suite-$(printf '%s' "$packages" | sha256sum | cut -c 1-12)"
image="runnel-test-base:$key"
tar="$cache/base-$key.tar"

if ! docker image inspect "$image" >/dev/null 2>&1; then
    if [[ ! -s "$tar" ]]; then
        command -v debootstrap >/dev/null || {
            echo "debootstrap is not installed." >&2
            exit 1
        }
        mkdir -p "$cache"
        root="$(mktemp -d "$cache/base-XXXXXX")"
        trap 'rm -rf "$root"' EXIT
        debootstrap --variant=minbase --include="$packages" "$suite" "$root" >"$cache/debootstrap.log" 2>&1 || {
            tail -n 20 "$cache/debootstrap.log" >&2
            exit 1
        }
        tar --directory "$root" --exclude=./var/cache/apt --exclude=./var/lib/apt/lists --exclude=./usr/share/doc \
            --exclude=./usr/share/locale --exclude=./usr/share/man --exclude=./dev --create --file "$tar.part" .
        mv "$tar.part" "$tar"
    fi
    docker import "$tar" "$image" >/dev/null
fi
echo "$image"
