"""The environment that an entry point sees: what a process needs, what its contract promises, what the site names."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from runnel.common.errors import BadSettings

_PROCESS = frozenset(
    {
        "PATH",
        "HOME",
        "USER",
        "LOGNAME",
        "LANG",
        "LANGUAGE",
        "TZ",
        "TMPDIR",
        "LD_LIBRARY_PATH",
        "DYLD_LIBRARY_PATH",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
    }
)
_INSTALLER = frozenset(
    {
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
        "NO_PROXY",
        "REQUESTS_CA_BUNDLE",
        "CURL_CA_BUNDLE",
        "NETRC",
        "XDG_CACHE_HOME",
        "XDG_CONFIG_HOME",
        "XDG_CONFIG_DIRS",
    }
)
# They would send the installation elsewhere than to the environment that is being built.
_MISLEADING = frozenset(
    {"UV_PYTHON", "UV_SYSTEM_PYTHON", "UV_TARGET", "UV_PREFIX", "UV_WORKING_DIRECTORY", "UV_DRY_RUN"}
)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
DEFAULT_DATABASE = "default"


def process_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Return those of the client's variables ``environ`` without which a process does not work as its site expects.

    They are ``PATH``, ``HOME``, ``USER``, ``LOGNAME``, ``LANG``, ``LANGUAGE``, ``LC_*``, ``TZ``, ``TMPDIR``, the
    folders of shared libraries and the certificates to trust. ``PYTHONUNBUFFERED`` is set, so that lines are seen when
    they are printed. No other ``PYTHON*`` variable is passed on or set: bytecode is written beside its source as
    always, which makes the second run of a package quicker than the first.
    """
    kept = {key: value for key, value in environ.items() if key in _PROCESS or key.startswith("LC_")}
    kept.setdefault("PATH", os.defpath)
    kept["PYTHONUNBUFFERED"] = "1"
    return kept


def installer_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Return what the installer sees: :func:`process_variables`, ``UV_*``, ``PIP_*``, proxies and certificates.

    They may carry credentials of a package index, so no entry point sees them.
    """
    kept = {
        key: value
        for key, value in environ.items()
        if (key.startswith(("UV_", "PIP_")) and key not in _MISLEADING) or key.upper() in _INSTALLER
    }
    return process_variables(environ) | kept


def entry_point_variables(
    *,
    client_name: str,
    session_id: str = "",
    round_number: int | None = None,
    data: Mapping[str, Path | str] | None = None,
    site: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Return the variables of the contract with entry points.

    Args:
        client_name: becomes ``RUNNEL_CLIENT_NAME``.
        session_id: becomes ``RUNNEL_SESSION``; empty outside of a session, and then not set.
        round_number: becomes ``RUNNEL_ROUND``; None when there is no round.
        data: the site's databases: a path or an address by name. ``default`` becomes ``RUNNEL_DATA``, any other
            ``RUNNEL_DATA_<NAME>`` in upper case, dashes and dots as underscores. Paths are made absolute, for entry
            points run in another folder.
        site: variables that the site's settings name, from :func:`site_variables`.

    Raises:
        BadSettings: two databases have the same variable, or a name has characters that variables can't have.
    """
    variables = dict(site or {})
    names: dict[str, str] = {}
    for name, where in (data or {}).items():
        variable = data_variable(name)
        if variable in names:
            raise BadSettings(
                f"The databases {names[variable]!r} and {name!r} would both be the variable {variable}.",
                hint="Rename one of them.",
                database=name,
            )
        names[variable] = name
        variables[variable] = str(where.absolute()) if isinstance(where, Path) else where
    variables["RUNNEL_CLIENT_NAME"] = client_name
    if session_id:
        variables["RUNNEL_SESSION"] = session_id
    if round_number is not None:
        variables["RUNNEL_ROUND"] = str(round_number)
    return variables


def data_variable(database: str) -> str:
    """Return the variable that tells where ``database`` is.

    >>> data_variable("default"), data_variable("lab-results")
    ('RUNNEL_DATA', 'RUNNEL_DATA_LAB_RESULTS')

    Raises:
        BadSettings: the name has characters that a variable can't have.
    """
    if database == DEFAULT_DATABASE:
        return "RUNNEL_DATA"
    part = database.upper().replace("-", "_").replace(".", "_")
    if not _NAME.fullmatch(f"X{part}") or not part:
        raise BadSettings(
            f"A database is named with letters, digits, dots, dashes and underscores, not {database!r}.",
            database=database,
        )
    return f"RUNNEL_DATA_{part}"


def site_variables(wanted: Iterable[str], environ: Mapping[str, str]) -> dict[str, str]:
    """Return what the site's settings pass on to entry points.

    Args:
        wanted: ``NAME`` (the client's own value, if it has one) or ``NAME=value``.
        environ: the client's variables.

    Raises:
        BadSettings: a name is not one, or begins with ``RUNNEL_``: those are the client's secrets or the contract's.
    """
    chosen = {}
    for item in wanted:
        name, given, value = item.partition("=")
        if not _NAME.fullmatch(name):
            raise BadSettings(f"Expected NAME or NAME=VALUE of a variable to pass on, got {name!r}.", variable=name)
        if name.upper().startswith("RUNNEL_"):
            raise BadSettings(
                f"The variable {name} can't be passed on to entry points: RUNNEL_ names belong to the client itself.",
                hint="Choose another name; databases are passed on with --data NAME=PATH.",
                variable=name,
            )
        if given:
            chosen[name] = value
        elif name in environ:
            chosen[name] = environ[name]
    return chosen
