"""The contracts on who may import whom hold, see the whole namespace, and notice a breach."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[2]


def lint(extra: Path | None = None, contract: str | None = None) -> subprocess.CompletedProcess[str]:
    program = str(Path(sysconfig.get_path("scripts")) / "lint-imports")
    return subprocess.run(
        [sys.executable, program, "--no-cache", "--no-logo", *(["--contract", contract] if contract else [])],
        cwd=ROOT,
        # One more portion of the namespace, beside those of the installation.
        env={**os.environ, "COLUMNS": "200", **({"PYTHONPATH": str(extra)} if extra else {})},
        capture_output=True,
        text=True,
        check=False,
    )


def test_all_contracts_hold() -> None:
    result = lint()
    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 broken" in result.stdout


@pytest.mark.parametrize(
    ("contract", "package", "imported"),
    [
        ("tiers", "client", "runnel.reducer"),
        ("tiers", "combiner", "runnel.client"),
        ("domain", "reducer.domain", "sqlalchemy"),
        ("domain", "combiner.domain", "runnel.transport"),
        ("domain", "client.domain", "grpc"),
        ("below", "common", "runnel.sdk"),
        ("below", "transport", "runnel.reducer"),
        ("light", "compute_package", "grpc"),
    ],
)
def test_a_breach_is_noticed(contract: str, package: str, imported: str, tmp_path: Path) -> None:
    folder = tmp_path / "runnel"
    for part in package.split("."):
        folder /= part
        folder.mkdir(parents=True)
        (folder / "__init__.py").touch()
    (folder / "breach.py").write_text(f"import {imported}\n")
    result = lint(tmp_path, contract)
    assert result.returncode == 1
    assert f"runnel.{package}.breach -> {imported}" in result.stdout, result.stdout + result.stderr
