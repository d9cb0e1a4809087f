"""``runnel package diff`` and ``retire``: versions of a package beside each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from runnel.cli.desk import Desk, command

if TYPE_CHECKING:
    from rich.console import RenderableType

    from runnel.compute_package import FileDifference, PackageDifference

Version = Annotated[
    str, typer.Argument(metavar="FILE_OR_DIGEST", help="An archive or folder here, or a digest of the network's.")
]

_STYLES = {"+": "green", "-": "red", "@": "cyan"}


def add_versions(packages: typer.Typer) -> None:
    """Add the commands to the group of packages."""
    command(packages, "diff")(diff)
    command(packages, "retire")(retire)


def diff(desk: Desk, before: Version, after: Version) -> None:
    """Show what is different in a later version: entry points, requirements, and the files line by line."""
    found = desk.network.packages.diff(before, after)
    desk.answer(_document(found), lambda: _rendered(found))


def retire(
    desk: Desk,
    package: Annotated[str, typer.Argument(metavar="DIGEST", help="The package; 4 or more characters will do.")],
    undo: Annotated[bool, typer.Option("--undo", help="Let sessions be given it again.")] = False,
) -> None:
    """Let no session be given a package any more; those that have it go on."""
    changed = desk.network.packages.retire(package, undo=undo)
    if desk.as_json:
        desk.write_json(changed.raw)
        return
    named = f"{changed.digest[:16]} ({changed.name} {changed.version}".rstrip() + ")"
    if undo:
        desk.say(f"{named} may be given to sessions again.")
        return
    desk.say(f"{named} is retired.")
    for session in changed.running_sessions:
        desk.say(f"{session} goes on with it. Move it: runnel session update {session} --package NEW")


def _document(found: PackageDifference) -> dict[str, Any]:
    return {
        "before": {"digest": found.before.digest, "size_bytes": found.before.size_bytes},
        "after": {"digest": found.after.digest, "size_bytes": found.after.size_bytes},
        "entry_points": {name: {"before": old, "after": new} for name, (old, new) in found.entry_points.items()},
        "requirements": {"removed": list(found.requirements[0]), "added": list(found.requirements[1])},
        "files": [
            {
                "name": each.name,
                "kind": each.kind,
                "size_bytes_before": each.before,
                "size_bytes_after": each.after,
                "diff": list(each.diff),
            }
            for each in found.files
        ],
    }


def _rendered(found: PackageDifference) -> RenderableType:
    from rich.text import Text

    lines: list[tuple[str, str]] = []
    for name, (old, new) in found.entry_points.items():
        lines += [("@", f"entry point {name}")]
        lines += [(mark, f"{mark}{line}") for mark, line in (("-", old), ("+", new)) if line is not None]
    if any(found.requirements):
        lines += [("@", "requirements")]
        for mark, needs in zip("-+", found.requirements, strict=True):
            lines += [(mark, f"{mark}{each}") for each in needs]
    for file in found.files:
        lines += [("", _heading(file)), *((line[:1], line) for line in file.diff[2:])]
    if not lines:
        return Text("There is no difference.")
    shown = Text()
    for mark, line in lines:
        # What strangers wrote must not speak to the terminal.
        shown.append(_printable(line) + "\n", style=_STYLES.get(mark, "bold" if not mark else ""))
    shown.rstrip()
    return shown


def _heading(file: FileDifference) -> str:
    from runnel.cli.tables import size

    sizes = [size(each) for each in (file.before, file.after) if each is not None]
    return f"{file.name}: {file.kind}, {' → '.join(sizes)}"


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() or c == "\t" else f"\\x{ord(c):02x}" for c in text)
