"""``runnel package``: the code that travels to the data."""

from __future__ import annotations

import asyncio
import os
import platform
from collections import deque
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from runnel.cli.client_settings import read_client_settings
from runnel.cli.desk import Desk, command, group
from runnel.cli.package_versions import add_versions
from runnel.cli.signing_commands import add_signing
from runnel.common.errors import InvalidInput

if TYPE_CHECKING:
    from rich.console import RenderableType

    from runnel.client.rehearsal import Rehearsal
    from runnel.sdk.values import Package

app = group("Compute packages: make, try and share the code that travels to the data.")

add_signing(app)
add_versions(app)

_LAST_LINES = 20


class RuntimeChoice(StrEnum):
    """How entry points run."""

    process = "process"
    docker = "docker"


class FednChoice(StrEnum):
    """What a requirement of ``fedn`` gets."""

    shim = "shim"
    real = "real"


@command(app, "init", local=True)
def init(
    desk: Desk, folder: Annotated[Path, typer.Argument(metavar="DIR", help="New folder, or an empty one.")]
) -> None:
    """Write a small package that works, to start from."""
    from runnel.compute_package import write_template

    write_template(folder)
    files = sorted(path.name for path in folder.iterdir())
    if desk.as_json:
        desk.write_json({"folder": str(folder), "files": files})
        return
    desk.say(f"Wrote {', '.join(files)} to {folder}.")
    desk.say(f"Try it: runnel package check {folder} --data default=…    Pack it: runnel package build {folder}")


@command(app, "build", local=True)
def build(
    desk: Desk,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="With train.py or a manifest in it.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="What to write; default: NAME.tar.gz in the parent of the present directory.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Pack a folder; the same files give the same digest wherever they are packed."""
    from runnel.cli.tables import size
    from runnel.compute_package import pack

    packed = pack(folder, out)
    if desk.as_json:
        files = [{"name": file.name, "size_bytes": file.size_bytes} for file in packed.files]
        desk.write_json(
            {
                "path": str(packed.path),
                "digest": packed.ref.sha256,
                "size_bytes": packed.ref.size_bytes,
                "files": files,
            }
        )
        return
    desk.say(f"Wrote {packed.path} ({len(packed.files)} files, {size(packed.ref.size_bytes)}).")
    desk.say(f"digest {packed.ref.sha256}")


@command(app, "check", local=True)
def check(
    desk: Desk,
    package: Annotated[Path, typer.Argument(metavar="DIR_OR_FILE", help="A package's folder or archive.")],
    seed: Annotated[
        Path | None,
        typer.Option("--seed", metavar="FILE", help="Model to start from; default: the package builds one."),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option("--data", metavar="NAME=PATH", help="Database of a site, as a client has it; may be repeated."),
    ] = None,
    client_settings: Annotated[
        str | None, typer.Option("--client-settings", metavar="JSON", help="Object that is handed to the package.")
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option(
            "--env", metavar="NAME[=VALUE]", help="A further variable that entry points see; may be repeated."
        ),
    ] = None,
    environments: Annotated[
        Path | None,
        typer.Option(
            "--environments", metavar="DIR", help="Keep the environment there, as a client does in its state."
        ),
    ] = None,
    find_links: Annotated[
        list[str] | None,
        typer.Option("--find-links", metavar="DIR_OR_URL", help="Wheels besides those of the package index."),
    ] = None,
    fedn: Annotated[
        FednChoice, typer.Option("--fedn", help="What the package gets if it requires fedn, as at a client.")
    ] = FednChoice.shim,
    runtime: Annotated[
        RuntimeChoice | None,
        typer.Option("--runtime", help="How it runs; default: in containers if it has a Dockerfile or names an image."),
    ] = None,
    docker_image: Annotated[
        str, typer.Option("--docker-image", metavar="IMAGE", help="As at a client; the engine is that of DOCKER_HOST.")
    ] = "",
    verbose: Annotated[bool, typer.Option("--verbose", help="Show what the entry points write, as it comes.")] = False,
) -> None:
    """Unpack and run a package the way a client will, and tell what is wrong; exit status 1 if anything is."""
    from runnel.client.rehearsal import rehearse
    from runnel.client.runtimes import FednSource, Installs, site_variables
    from runnel.common.logs import setup_logs

    setup_logs("warning")
    last: deque[str] = deque(maxlen=_LAST_LINES)

    def say(stream: str, text: str) -> None:
        line = f"{stream}: {text}"
        last.append(line)
        if verbose:
            desk.aside.print(f"  {line}", style="dim", markup=False, soft_wrap=True)

    databases = {name: Path(path) for name, path in map(_database, data or [])}
    settings = read_client_settings(client_settings)
    places = tuple(place if "://" in place else str(Path(place).absolute()) for place in find_links or ())
    result = asyncio.run(
        rehearse(
            package,
            seed=seed,
            data=databases,
            settings=settings,
            variables=site_variables(env or [], os.environ),
            say=say,
            environments=environments,
            installs=Installs(find_links=places, fedn=FednSource(fedn.value)),
            runtime=None if runtime is None else runtime.value,
            docker_image=docker_image,
        )
    )
    desk.answer(_document(result), lambda: _rehearsal(result))
    if not result.ok:
        if not (verbose or desk.as_json):
            for line in last:
                desk.aside.print(f"  {line}", style="dim", markup=False, soft_wrap=True)
        raise typer.Exit(1)


@command(app, "pin", local=True)
def pin(
    desk: Desk,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A package's folder.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="What to write; default: requirements.pinned.txt in DIR.",
            show_default=False,
        ),
    ] = None,
    hashes: Annotated[bool, typer.Option("--hashes", help="With the hashes of all files.")] = False,
    find_links: Annotated[
        list[str] | None,
        typer.Option("--find-links", metavar="DIR_OR_URL", help="Wheels besides those of the package index."),
    ] = None,
) -> None:
    """Write what a package requires with exact versions, so that every site installs the same."""
    from runnel.client.pinning import pin as resolve
    from runnel.client.runtimes import Installs
    from runnel.common.logs import setup_logs
    from runnel.compute_package import read_manifest

    setup_logs("warning")
    out = folder / "requirements.pinned.txt" if out is None else out
    places = tuple(place if "://" in place else str(Path(place).absolute()) for place in find_links or ())
    text = asyncio.run(
        resolve(folder, say=lambda stream, text: None, hashes=hashes, installs=Installs(find_links=places))
    )
    out.write_text(text, encoding="utf-8")
    projects = [line.split()[0] for line in text.splitlines() if line and not line.startswith((" ", "-", "#"))]
    if desk.as_json:
        desk.write_json({"path": str(out), "requirements": projects})
        return
    desk.say(f"Wrote {out}: {', '.join(projects)}.")
    if out.resolve().is_relative_to(folder.resolve()):
        inside = out.resolve().relative_to(folder.resolve())
        desk.say(f"Sites install it when runnel.yaml says: requirements: {inside}")
        if not read_manifest(folder).python:
            own = platform.python_version().rpartition(".")[0]
            desk.say(f'It is for Python {own}, which sites are held to when runnel.yaml says: python: "{own}"')


@command(app, "show")
def show(
    desk: Desk,
    package: Annotated[
        str, typer.Argument(metavar="FILE_OR_DIGEST", help="An archive or folder here, or a digest of the network's.")
    ],
) -> None:
    """Show what a package is."""
    from runnel.cli.tables import facts, size, when

    path = Path(package)
    if path.exists():
        _show_local(desk, path)
        return
    found = desk.network.packages.show(package)
    entry_points, needs = found.manifest.get("entry_points"), found.manifest.get("requirements")
    files = [f"{file['name']} ({size(file['size_bytes'])})" for file in found.manifest.get("files", ())]
    desk.answer(
        found.raw,
        lambda: facts(
            [
                ("digest", found.digest),
                ("name", f"{found.name} {found.version}".rstrip()),
                ("size", size(found.size_bytes)),
                ("entry points", _entry_points(entry_points)),
                ("requirements", needs or found.manifest.get("python_env") or "none: the client's own Python"),
                ("at the reducer", _server_functions(found.manifest.get("server"))),
                ("files", "\n".join(files)),
                ("signed by", "\n".join(f"{each.key_id}  {each.public_key}" for each in found.signatures) or "nobody"),
                ("organisation", found.organisation),
                ("pushed", _pushed(found)),
                ("retired", when(found.retired_at) or None),
                ("sessions", str(found.sessions)),
                ("running", "\n".join(found.running_sessions) or None),
            ]
        ),
    )


@command(app, "push")
def push(
    desk: Desk, file: Annotated[Path, typer.Argument(metavar="FILE", help="An archive of `runnel package build`.")]
) -> None:
    """Push an archive to the network, with the signatures in FILE.sig if there are any, and print its digest."""
    if file.is_dir():
        raise InvalidInput(f"{file} is a folder.", hint=f"Pack it first: runnel package build {file}")
    with desk.transfer(file.name) as progress:
        package = desk.network.packages.push(file, progress=progress)
    if desk.as_json:
        desk.write_json(package.raw)
    else:
        desk.say(package.digest)


@command(app, "list")
def list_packages(desk: Desk) -> None:
    """List the network's packages, newest first."""
    from runnel.cli.tables import size, table, when

    packages = list(desk.network.packages.list())
    if desk.as_json:
        desk.write_json([package.raw for package in packages])
        return
    columns = ("digest", "name", "version", "size", "signed by", "pushed", "sessions")
    made = table(*columns, right=("size", "sessions"), fold=("name", "pushed"))
    for package in packages:
        moment, held = _pushed(package), size(package.size_bytes)
        if package.retired_at is not None:
            moment += f", retired {when(package.retired_at)}"
        signers = ", ".join(each.key_id for each in package.signatures)
        sessions = str(package.sessions) + (f" ({running} run)" if (running := len(package.running_sessions)) else "")
        made.add_row(package.digest[:16], package.name, package.version, held, signers, moment, sessions)
    desk.console.print(made)


def _pushed(package: Package) -> str:
    from runnel.cli.tables import when

    return when(package.created_at) + (f" by {package.uploaded_by}" if package.uploaded_by else "")


def _server_functions(server: Any) -> str | None:
    return f"{', '.join(server['functions'])} in {server['file']}" if server else None


def _show_local(desk: Desk, path: Path) -> None:
    from runnel.cli.tables import facts, size
    from runnel.compute_package import describe

    found = describe(path)
    manifest = found.manifest
    document = {
        "digest": found.digest,
        "name": manifest.name,
        "version": manifest.version,
        "size_bytes": found.size_bytes,
        "kind": found.recognised,
        "entry_points": dict(manifest.entry_points),
        "requirements": manifest.requirements,
        "server": None if manifest.server is None else manifest.server.as_json(),
        "files": [{"name": file.name, "size_bytes": file.size_bytes} for file in found.files],
    }
    files = "\n".join(f"{file.name} ({size(file.size_bytes)})" for file in found.files)
    desk.answer(
        document,
        lambda: facts(
            [
                ("digest", found.digest),
                ("name", f"{manifest.name} {manifest.version}".rstrip()),
                ("kind", found.recognised),
                ("size", size(found.size_bytes)),
                ("entry points", _entry_points(manifest.entry_points)),
                ("requirements", manifest.requirements or "none: the client's own Python"),
                ("at the reducer", _server_functions(manifest.server and manifest.server.as_json())),
                ("files", files),
            ]
        ),
    )


def _entry_points(entry_points: Any) -> str | None:
    return "\n".join(f"{name}: {line}" for name, line in entry_points.items()) if entry_points else None


def _document(result: Rehearsal) -> dict[str, Any]:
    steps = [
        {"name": step.name, "ok": step.ok, "detail": step.detail, "hint": step.hint, "elapsed_s": step.elapsed_s}
        for step in result.steps
    ]
    return {
        "ok": result.ok,
        "recognised": dict(result.recognised),
        "steps": steps,
        "warnings": list(result.warnings),
    }


def _rehearsal(result: Rehearsal) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    lines = []
    for step in result.steps:
        mark = Text("✓ ", style="green") if step.ok else Text("✗ ", style="bold red")
        text = Text.assemble(mark, (step.name, "bold"), f"  {step.detail}")
        if not step.ok and step.hint:
            text.append(f"\n  {step.hint}", style="yellow")
        lines.append(text)
    lines += [Text(f"! {warning}", style="yellow") for warning in result.warnings]
    lines.append(
        Text("This package will run.", style="green")
        if result.ok
        else Text("This package will not run at a client.", style="red")
    )
    return Group(*lines)


def _database(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if not equals:
        return "default", text
    if not (name and path):
        raise InvalidInput(f"--data: {text!r} came; it has to be NAME=PATH.", hint="For example default=site-1.npz.")
    return name, path
