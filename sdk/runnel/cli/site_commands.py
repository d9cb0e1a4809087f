"""``runnel client policy``, ``review`` and ``audit``: what the people of a site decide and see."""

from __future__ import annotations

import getpass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from runnel.cli.desk import Desk, command, group

if TYPE_CHECKING:
    from runnel.client.domain.policy import Review

State = Annotated[
    Path | None,
    typer.Option("--state", metavar="DIR", envvar="RUNNEL_CLIENT_STATE", help="The client's. [default: client-state]"),
]
Digest = Annotated[str, typer.Argument(metavar="DIGEST", help="Of the package; its first digits will do.")]

_STATE = Path("client-state")


def add_site(client: typer.Typer) -> None:
    """Add the commands below ``runnel client``."""
    policy = group("The site's policy: what may run here.")
    command(policy, "check", local=True)(check)
    client.add_typer(policy, name="policy")
    review = typer.Typer(
        help="Packages that wait for approval: list, show, approve, refuse.",
        rich_markup_mode=None,
        add_completion=False,
    )
    review.callback(invoke_without_command=True)(list_waiting)
    command(review, "show", local=True)(show)
    command(review, "approve", local=True)(approve)
    command(review, "refuse", local=True)(refuse)
    client.add_typer(review, name="review")
    command(client, "audit", local=True)(audit)


def check(desk: Desk, file: Annotated[Path, typer.Argument(metavar="FILE", help="Policy file (TOML).")]) -> None:
    """Read a policy file as the client would, and say what it lets run."""
    from runnel.cli.site_view import policy_parts
    from runnel.client.policy_file import policy_document, read_policy

    site = read_policy(file)
    document = policy_document(site.policy)
    desk.answer({"fingerprint": site.fingerprint, "policy": document}, lambda: policy_parts(site.source, document))


def list_waiting(
    context: typer.Context,
    state: State = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Write one JSON document on standard output, nothing else.")
    ] = False,
) -> None:
    """Packages that wait for approval: list, show, approve, refuse."""
    if context.invoked_subcommand is not None:
        context.obj = state
        return
    import dataclasses

    from runnel.cli.site_view import waiting_table
    from runnel.client.reviews import Reviews

    desk = Desk(as_json=as_json)
    waiting = Reviews(state_folder(state)).pending()
    desk.answer([dataclasses.asdict(each) for each in waiting], lambda: waiting_table(waiting))


def show(desk: Desk, context: typer.Context, digest: Digest, state: State = None) -> None:
    """Show a package that waits: files, entry points, requirements, who asks, what changed since the last approval."""
    from runnel.cli.site_view import package_parts
    from runnel.client.package_review import inspect
    from runnel.client.reviews import Reviews

    reviews = Reviews(state_folder(state, context))
    inspected = inspect(reviews, reviews.find(digest))
    desk.answer(inspected.document(), lambda: package_parts(inspected))


def approve(desk: Desk, context: typer.Context, digest: Digest, state: State = None) -> None:
    """Let a package run here, from now on; the client notices by itself."""
    from runnel.client.domain.policy import Review

    _decide(desk, state_folder(state, context), digest, Review.APPROVED, "")


def refuse(
    desk: Desk,
    context: typer.Context,
    digest: Digest,
    state: State = None,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="For this site's records.")] = "",
) -> None:
    """Never run a package here, whoever signed it."""
    from runnel.client.domain.policy import Review

    _decide(desk, state_folder(state, context), digest, Review.REFUSED, reason)


def audit(
    desk: Desk,
    state: State = None,
    since: Annotated[
        str | None, typer.Option("--since", metavar="TIME", help="Only newer records: 2026-11-20, or 12h, 7d.")
    ] = None,
    contains: Annotated[
        str | None, typer.Option("--contains", metavar="HASH", help="Require a record that was known before.")
    ] = None,
) -> None:
    """Show what ran here, for whom, and verify that nothing of the log was changed; exit status 1 if it was."""
    from runnel.cli.site_view import audit_parts, record_document
    from runnel.client.audit import AUDIT_FILE, AuditLog, utc_now
    from runnel.common.errors import CorruptData

    moment = None if since is None else _moment(since, utc_now())
    path = state_folder(state) / AUDIT_FILE
    records = list(AuditLog(path).records())
    if contains is not None and not any(record.hash.startswith(contains) for record in records):
        raise CorruptData(
            f"The audit log {path} has no record with the hash {contains}.",
            hint="If it had one, its end was cut off, or another log was put in its place.",
            path=str(path),
        )
    shown = [record for record in records if moment is None or record.at >= moment]
    last = records[-1] if records else None
    desk.answer(
        {
            "records": [record_document(record) for record in shown],
            "verified": len(records),
            "last": None if last is None else last.hash,
        },
        lambda: audit_parts(shown, len(records), last),
    )


def _decide(desk: Desk, folder: Path, digest: str, review: Review, reason: str) -> None:
    from runnel.client.audit import AUDIT_FILE, AuditLog, utc_now
    from runnel.client.reviews import Reviews

    reviews = Reviews(folder)
    by = getpass.getuser()
    wanted = reviews.named(digest)
    note = {"package": wanted.digest, "name": wanted.name, "by": by, "reason": reason}
    # In this order: whatever runs by an approval, the log has the approval.
    AuditLog(folder / AUDIT_FILE).append(f"review.{review.value}", note)
    decided = reviews.decide(wanted, review, by=by, at=utc_now(), reason=reason)
    if desk.as_json:
        desk.write_json({"package": decided.digest, "name": decided.name, "review": review.value, "by": by})
        return
    named = f"{decided.name} " if decided.name else ""
    desk.say(f"{review.value.capitalize()} {named}{decided.digest}.")


def state_folder(state: Path | None, context: typer.Context | None = None) -> Path:
    """Return the state folder of the command, of the group before it, or the default."""
    from runnel.common.errors import NotFound

    folder: Path = state or (context and context.obj) or _STATE
    if not folder.is_dir():
        raise NotFound(f"There is no folder {folder}.", hint="Give the --state of the client.", path=str(folder))
    return folder


def _moment(text: str, now: datetime) -> datetime:
    from runnel.common.errors import InvalidInput

    units: dict[str, Any] = {"m": "minutes", "h": "hours", "d": "days"}
    try:
        if text[-1:] in units:
            return now - timedelta(**{units[text[-1]]: float(text[:-1])})
        moment = datetime.fromisoformat(text)
    except (ValueError, OverflowError) as error:
        raise InvalidInput(f"--since: {text!r} came; expected was a time, as 2026-11-20, or 30m, 12h, 7d.") from error
    return moment.astimezone()
