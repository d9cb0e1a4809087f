#!/usr/bin/env bash
# A Docker engine of the tests' own, beside any other on this machine: its data, its socket and its processes are those
# of one folder. It has no network bridge, so it needs no firewall rules and containers reach nothing.
#
#   tools/docker_engine.sh start [DIR]   starts it if it is not running; prints its address, for DOCKER_HOST
#   tools/docker_engine.sh stop [DIR]    ends it; what it holds stays for the next start
set -euo pipefail

verb="${1:-}"
dir="${2:-${XDG_CACHE_HOME:-$HOME/.cache}/runnel-tests/engine}"
socket="$dir/docker.sock"

answers() {
    [[ -S "$socket" ]] && curl --silent --fail --max-time 5 --unix-socket "$socket" http://engine/_ping >/dev/null
}

running() {
    [[ -s "$dir/docker.pid" ]] && kill -0 "$(<"$dir/docker.pid")" 2>/dev/null
}

case "$verb" in
start)
    if ! answers; then
        command -v dockerd >/dev/null || {
            echo "dockerd is not installed; on Debian it is in the package docker.io." >&2
            exit 1
        }
        mkdir -p "$dir"
        running || rm -f "$dir/docker.pid"
        nohup dockerd --data-root "$dir/data" --exec-root "$dir/exec" --host "unix://$socket" \
            --pidfile "$dir/docker.pid" --bridge none --iptables=false --ip6tables=false --ip-forward=false \
            --ip-masq=false </dev/null >"$dir/log" 2>&1 &
        for ((left = 300; left > 0; left--)); do
            answers && break
            sleep 0.1
        done
        answers || {
            echo "The Docker engine in $dir does not answer; the end of its log:" >&2
            tail -n 20 "$dir/log" >&2
            exit 1
        }
    fi
    echo "unix://$socket"
    ;;
stop)
    if running; then
        pid="$(<"$dir/docker.pid")"
        kill "$pid"
        for ((left = 300; left > 0; left--)); do
            kill -0 "$pid" 2>/dev/null || exit 0
            sleep 0.1
        done
        echo "The Docker engine in $dir (process $pid) does not end." >&2
        exit 1
    fi
    ;;
*)
    echo "Usage: tools/docker_engine.sh start|stop [DIR]" >&2
    exit 2
    ;;
esac
