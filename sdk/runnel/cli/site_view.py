"""How a site's policy, reviews and audit log look to its people.

What packages and networks say is shown with everything unprintable spelt out: a file may well hold what moves a
terminal's cursor over the line that one should read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.text import Text

from runnel.cli.tables import facts, size, table, when

if TYPE_CHECKING:
    from runnel.client.domain.audit_chain import Record
    from runnel.client.package_review import Inspected
    from runnel.client.reviews import Pending

_SHORT = 12
_DIFF_STYLES = {"+": "green", "-": "red", "@": "cyan"}


def printable(text: str) -> str:
    r"""Return ``text`` with what is no printable character spelt out.

    >>> printable("a\x1b[2Kb\u202ec")
    'a\\x1b[2Kb\\u202ec'
    """
    return "".join(
        each if each.isprintable() or each in "\t\n" else each.encode("unicode_escape").decode() for each in text
    )


def policy_parts(source: str, policy: Mapping[str, Any]) -> RenderableType:
    """Return a policy, in the words of its file."""
    limits = {name: value for name, value in policy["limits"].items() if value is not None}
    return facts(
        [
            ("policy", source),
            ("approve", policy["approve"]),
            ("signers", _lines(policy["signers"], "nobody")),
            ("digests", "\n".join(policy["digests"]) or "none"),
            *((name, _listed(policy[name])) for name in ("packages", "runtimes", "networks")),
            ("installs", "allowed" if policy["installs"] else "not allowed"),
            ("hours", "\n".join(map(_hours, policy["hours"])) or "always"),
            ("databases", "all" if policy["databases"] is None else _databases(policy["databases"])),
            ("limits", _limits(limits) or "as the client is set"),
            ("tasks", "none run" if policy["tasks"] is None else _tasks(policy["tasks"])),
        ]
    )


def waiting_table(waiting: Sequence[Pending]) -> RenderableType:
    """Return the packages that wait."""
    if not waiting:
        return Text("No package waits for approval.")
    made = table("digest", "name", "version", "signed by", "asked by", "since", fold=("name", "asked by"))
    for each in waiting:
        signers, asking = ", ".join(each.signers) or "nobody", printable("\n".join(each.asking))
        made.add_row(
            each.digest[:_SHORT], printable(each.name), printable(each.version), signers, asking, when(each.since)
        )
    return Group(made, Text("Look: runnel client review show DIGEST   then approve DIGEST or refuse DIGEST"))


def package_parts(inspected: Inspected) -> RenderableType:
    """Return a package that waits, with what changed since the one approved before."""
    pending, manifest = inspected.pending, inspected.manifest
    before = inspected.before
    head = facts(
        [
            ("digest", pending.digest),
            ("name", printable(f"{pending.name} {pending.version}".rstrip())),
            ("why it waits", printable(pending.reason)),
            ("signed by", ", ".join(pending.signers) or "nobody"),
            ("asked by", printable("\n".join(pending.asking))),
            ("since", when(pending.since)),
            ("entry points", printable(_lines(manifest.entry_points, "none"))),
            ("requirements", printable(inspected.requirements.strip()) or "none: the client's own Python"),
            ("Python", manifest.asked_python[0] or None),
            ("of the system", ", ".join(manifest.apt) or None),
            ("files", printable("\n".join(f"{name} ({size(held)})" for name, held in inspected.files.items()))),
            ("approved before", None if before is None else f"{before.digest} by {before.by}, {when(before.at)}"),
        ]
    )
    if before is None:
        return Group(head, Text("No package of this name was approved here before.", style="dim"))
    lines = [Text(printable(line), style=_DIFF_STYLES.get(line[:1], "")) for line in inspected.difference]
    return Group(head, Text(), *(lines or [Text("The files are those of the package approved before.")]))


def audit_parts(records: Sequence[Record], verified: int, last: Record | None) -> RenderableType:
    """Return records as a table, and what the log was verified to be."""
    made = table("time", "what", "package", "for", "details", fold=("for", "details"))
    for record in records:
        data = record.data
        package = " ".join(filter(None, (str(data.get("name", "")), str(data.get("package", ""))[:_SHORT])))
        asked = "/".join(str(data[name]) for name in ("organisation", "session", "user") if name in data)
        made.add_row(when(record.at), record.kind, printable(package), printable(asked), printable(_details(data)))
    end = "The log is empty." if last is None else f"{verified} records, the chain holds. The last: {last.hash}"
    return Group(made, Text(end))


def record_document(record: Record) -> dict[str, Any]:
    """Return a record as JSON can say it."""
    return {
        "seq": record.seq,
        "at": record.at.isoformat(),
        "kind": record.kind,
        "data": dict(record.data),
        "hash": record.hash,
    }


_ELSEWHERE = frozenset({"name", "package", "organisation", "session", "user", "policy"})


def _details(data: Mapping[str, Any]) -> str:
    told = {name: value for name, value in data.items() if name not in _ELSEWHERE and value not in ("", None, [])}
    return ", ".join(f"{name}={'+'.join(value) if isinstance(value, list) else value}" for name, value in told.items())


def _lines(pairs: Mapping[str, Any], nothing: str) -> str:
    return "\n".join(f"{name}: {value}" for name, value in pairs.items()) or nothing


def _listed(values: Sequence[str] | None) -> str:
    return "any" if values is None else ", ".join(values) or "none"


def _hours(hours: Mapping[str, Any]) -> str:
    return f"{' '.join(hours['days'])} {hours['from']} to {hours['to']} {hours['zone']}"


def _tasks(tasks: Mapping[str, Any]) -> str:
    listed = ("images", "digests", "registries", "users", "organisations", "databases", "networks")
    lines = [f"{name}: {_listed(tasks[name])}" for name in listed if tasks[name] is not None]
    if tasks["egress"]:
        lines.append(f"hosts reached by a proxy (egress): {_listed(tasks['egress'])}")
    lines += [f"central functions: {_yes(tasks['central'])}", f"data selected out: {_yes(tasks['select'])}"]
    lines += [f"pull: {tasks['pull']}", f"review of results: {_yes(tasks['review'])}"]
    if tasks["remote_review"]:
        lines.append(f"decided from elsewhere by: {_listed(tasks['remote_review'])}")
    if tasks["minimum_rows"]:
        lines.append(f"rows of a selection: at least {tasks['minimum_rows']}")
    limits = {name: value for name, value in tasks["limits"].items() if value is not None}
    return "\n".join([*lines, _limits(limits)])


def _limits(limits: Mapping[str, float]) -> str:
    return "\n".join(f"{name}: {_bytes(value) if name.endswith('_bytes') else value}" for name, value in limits.items())


def _bytes(number: float) -> str:
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if number >= unit and number % unit == 0:
            return f"{number // unit}{name}"
    return str(number)


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _databases(rules: Mapping[str, Mapping[str, Any]]) -> str:
    lines = []
    for name, rule in rules.items():
        parts = [f"{what} {', '.join(rule[what])}" for what in ("packages", "signers") if rule[what] is not None]
        lines.append(f"{name}: {' and '.join(parts) or 'all'}")
    return "\n".join(lines) or "none"
