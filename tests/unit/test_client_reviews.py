"""Packages that wait for a person: who asks, what was decided, what there is to look at."""

from __future__ import annotations

import dataclasses
import io
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from rich.console import Console

from runnel.cli.site_view import package_parts, policy_parts, printable, waiting_table
from runnel.client.domain.egress import egress_host
from runnel.client.domain.policy import ANYTHING, Review
from runnel.client.domain.task_policy import TaskPolicy
from runnel.client.package_review import inspect
from runnel.client.policy_file import policy_document
from runnel.client.reviews import Pending, Reviews
from runnel.common.blobs import digest_file
from runnel.common.errors import Conflict, CorruptData, NotFound
from runnel.compute_package import pack
from tests.doubles.client_packages import ADD_ONE, MEASURE, write_package

pytestmark = pytest.mark.unit

NOW = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)


def waits(digest: str, **changes: object) -> Pending:
    made = Pending(
        digest=digest,
        name="digits",
        version="1",
        archive="a",
        signers=(),
        asking=("north/ses-1",),
        reason="it is not signed",
        since=NOW,
    )
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def test_who_asks_is_kept_once_and_news_is_told_once(tmp_path: Path) -> None:
    reviews = Reviews(tmp_path)
    assert reviews.pending() == []
    assert reviews.ask(waits("ab" * 32))
    assert not reviews.ask(waits("ab" * 32, asking=("south/ses-2",), since=NOW + timedelta(hours=1)))
    assert not reviews.ask(waits("ab" * 32))
    (pending,) = Reviews(tmp_path).pending()
    assert (pending.asking, pending.since) == (("north/ses-1", "south/ses-2"), NOW)
    for number in range(30):
        reviews.ask(waits("ab" * 32, asking=(f"north/{number}",)))
    assert reviews.pending()[0].asking[0] == "north/10"
    reviews.settled("ab" * 32)
    reviews.settled("ab" * 32)
    assert reviews.pending() == []


def test_a_decision_is_found_by_those_who_ask_again(tmp_path: Path) -> None:
    reviews = Reviews(tmp_path)
    for digest in ("ab" * 32, "ac" * 32):
        reviews.ask(waits(digest))
    with pytest.raises(Conflict, match="More than one"):
        reviews.named("a")
    with pytest.raises(NotFound):
        reviews.named("ff")
    with pytest.raises(NotFound):
        reviews.named("")
    assert reviews.review("ab" * 32) is None
    reviews.decide(reviews.named("ab"), Review.APPROVED, by="kim", at=NOW)
    reviews.decide(reviews.named("ff" * 32), Review.REFUSED, by="kim", at=NOW, reason="no")
    assert [Reviews(tmp_path).review(digest * 32) for digest in ("ab", "ac", "ff")] == [
        Review.APPROVED,
        None,
        Review.REFUSED,
    ]
    assert [each.digest for each in reviews.pending()] == ["ac" * 32]
    reviews.settled("ab" * 32)
    reviews.decide(reviews.named("abab"), Review.REFUSED, by="kim", at=NOW + timedelta(1))
    assert reviews.review("ab" * 32) is Review.REFUSED


def test_files_that_somebody_changed_are_no_approval(tmp_path: Path) -> None:
    reviews = Reviews(tmp_path)
    reviews.decide(reviews.named("ab" * 32), Review.APPROVED, by="kim", at=NOW)
    (file,) = (tmp_path / "review" / "decided").iterdir()
    for text in ("{}", "[]", "what", '{"review": "perhaps"}'):
        file.write_text(text)
        with pytest.raises(CorruptData):
            reviews.review("ab" * 32)


class Shelf:
    """A state folder with archives of versions of one package."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.reviews = Reviews(folder)

    def comes(self, name: str, files: dict[str, str]) -> Pending:
        write_package(self.folder / name, {"runnel.yaml": "name: digits\n", **files})
        archive = pack(self.folder / name, self.folder / f"{name}.tar.gz").path
        pending = waits(digest_file(archive).sha256, archive=f"{name}.tar.gz")
        self.reviews.ask(pending)
        return pending

    def approve(self, pending: Pending) -> None:
        self.reviews.decide(self.reviews.named(pending.digest), Review.APPROVED, by="kim", at=NOW)


MANIFEST = {"train.py": ADD_ONE, "validate.py": MEASURE}


def drawn(*renderables: object) -> str:
    console = Console(file=io.StringIO(), width=200, color_system=None)
    for each in renderables:
        console.print(each)
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def test_what_changed_since_the_version_approved_before_is_shown(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    entry = "entry_points:\n  train:\n    command: python train.py\n"
    first = shelf.comes("v1", {**MANIFEST, "runnel.yaml": f"name: digits\n{entry}", "gone.txt": "old\n"})
    text = drawn(package_parts(inspect(shelf.reviews, first)))
    assert "No package of this name was approved here before." in text
    shelf.approve(first)
    second = shelf.comes(
        "v2",
        {
            **MANIFEST,
            "runnel.yaml": f"name: digits\n{entry}",
            "train.py": ADD_ONE + "print('\x1b[2Kmore')\n",
            "requirements.txt": "numpy\n",
            "data.bin": "\0\1",
        },
    )
    seen = inspect(shelf.reviews, second)
    assert seen.before is not None
    assert seen.before.digest == first.digest
    assert "+print('\x1b[2Kmore')" in seen.difference
    assert "-old" in seen.difference
    assert "--- gone.txt" in seen.difference
    assert "+++ (not there)" in seen.difference
    assert any(line.startswith("data.bin: no text") for line in seen.difference)
    assert seen.requirements == "numpy\n"
    assert not any("validate.py" in line for line in seen.difference)
    text = drawn(package_parts(seen))
    assert "\x1b" not in text
    assert "\\x1b[2Kmore" in text
    assert first.digest in text


def test_an_archive_that_was_changed_or_is_gone_is_not_shown(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    pending = shelf.comes("v1", MANIFEST)
    (tmp_path / "v1.tar.gz").write_bytes(b"another")
    with pytest.raises(CorruptData, match="any more"):
        inspect(shelf.reviews, pending)
    (tmp_path / "v1.tar.gz").unlink()
    with pytest.raises(NotFound, match="not here"):
        inspect(shelf.reviews, pending)


def test_what_a_stranger_wrote_moves_no_cursor() -> None:
    assert printable("a\x1b[2K\r\u202eb\tc") == "a\\x1b[2K\\r\\u202eb\tc"
    hostile = waits("ab" * 32, name="\x1b[8mdigits", asking=("north/\x07",))
    text = drawn(waiting_table([hostile]), waiting_table([]), policy_parts("file", policy_document(ANYTHING)))
    assert "\\x1b[8mdigits" in text
    assert "\\x07" in text
    assert "No package waits" in text


def test_a_policy_is_shown_with_every_way_out_that_tasks_have() -> None:
    rules = TaskPolicy(images=(".*",), egress=(egress_host("api.example.org"),), select=True)
    policy = dataclasses.replace(ANYTHING, tasks=rules)
    text = drawn(policy_parts("file", policy_document(policy)))
    assert "hosts reached by a proxy (egress): api.example.org" in text
    assert "data selected out: yes" in text
    assert "central functions: no" in text
    assert "output_bytes: 1GiB" in text
    assert "log_bytes: 8MiB" in text
