"""What a site lets run: the verdict on a package, and the file that the rules come from."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runnel.cli.main import main
from runnel.client.app import site_cage, site_policy
from runnel.client.domain.cage import Cage
from runnel.client.domain.policy import (
    ANYTHING,
    SIGNED,
    Allowed,
    Approval,
    AwaitingApproval,
    DatabaseRule,
    Facts,
    Hours,
    NotNow,
    Policy,
    PolicyLimits,
    Refused,
    Review,
)
from runnel.client.policy_file import default_policy, policy_document, read_policy
from runnel.client.settings import ClientSettings
from runnel.common.errors import BadSettings
from runnel.compute_package import public_key_text
from tests.doubles.said import Said

pytestmark = pytest.mark.unit

ADA, EVE = b"a" * 32, b"e" * 32
DIGEST, OTHER = "ab" * 32, "cd" * 32
NOW = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)  # a Monday
FACTS = Facts(digest=DIGEST, name="digits")
BY_ADA = Policy(signers={"ada": ADA})


def facts(**changes: Any) -> Facts:
    return dataclasses.replace(FACTS, **changes)


@pytest.mark.parametrize(
    ("policy", "about", "verdict"),
    [
        (ANYTHING, FACTS, Allowed(by="anything")),
        (SIGNED, FACTS, AwaitingApproval(reason="it is not signed, and its digest is not approved")),
        (BY_ADA, facts(signers=frozenset({ADA})), Allowed(by="signer", signer="ada")),
        (
            BY_ADA,
            facts(signers=frozenset({EVE})),
            AwaitingApproval(reason="nobody whom the site allows signed it, and its digest is not approved"),
        ),
        (SIGNED, facts(review=Review.APPROVED), Allowed(by="review")),
        (Policy(digests=frozenset({DIGEST})), FACTS, Allowed(by="digest")),
        (
            Policy(approve=Approval.REVIEWED, signers={"ada": ADA}),
            facts(signers=frozenset({ADA})),
            AwaitingApproval(reason="its digest is not approved"),
        ),
        (
            ANYTHING,
            facts(review=Review.REFUSED),
            Refused(rule="review", reason="the people of the site refused this digest"),
        ),
        (
            dataclasses.replace(ANYTHING, signers={"ada": ADA}),
            facts(forged=frozenset({ADA})),
            Refused(rule="signers", reason="the signature in the name of ada does not verify"),
        ),
        (ANYTHING, facts(forged=frozenset({EVE})), Allowed(by="anything")),
        (dataclasses.replace(ANYTHING, packages=("dig.*",)), FACTS, Allowed(by="anything")),
        (
            dataclasses.replace(ANYTHING, packages=("dig", "igits")),
            FACTS,
            Refused(rule="packages", reason="no pattern matches the name digits"),
        ),
        (
            dataclasses.replace(ANYTHING, runtimes=frozenset({"docker"})),
            FACTS,
            Refused(rule="runtimes", reason="the runtime process is not allowed"),
        ),
        (
            dataclasses.replace(ANYTHING, networks=frozenset({"none"})),
            FACTS,
            Refused(rule="networks", reason="the network host is not allowed"),
        ),
    ],
)
def test_the_verdict(policy: Policy, about: Facts, verdict: object) -> None:
    assert policy.judge(about, NOW) == verdict


keys = st.frozensets(st.sampled_from([ADA, EVE]))
names = st.sampled_from(["digits", "hospital-1", "x"])
patterns = st.lists(st.sampled_from(["digits", "hospital-.*", ".*"]), max_size=2).map(tuple)
words = st.frozensets(st.sampled_from(["process", "docker", "host", "none"]), max_size=3)
policies = st.builds(
    Policy,
    approve=st.sampled_from(Approval),
    signers=st.dictionaries(st.sampled_from(["ada", "eve"]), st.sampled_from([ADA, EVE]), max_size=2),
    digests=st.frozensets(st.sampled_from([DIGEST, OTHER])),
    packages=st.none() | patterns,
    runtimes=st.none() | words,
    networks=st.none() | words,
)
cases = st.builds(
    Facts,
    digest=st.sampled_from([DIGEST, OTHER]),
    name=names,
    signers=keys,
    runtime=st.sampled_from(["process", "docker"]),
    network=st.sampled_from(["host", "none"]),
    review=st.none() | st.sampled_from(Review),
)


@given(policy=policies, about=cases)
def test_nothing_runs_that_nobody_allowed(policy: Policy, about: Facts) -> None:
    verdict = policy.judge(about, NOW)
    if isinstance(verdict, Allowed) and policy.approve is not Approval.ANYTHING:
        known = about.digest in policy.digests or about.review is Review.APPROVED
        signed = policy.approve is Approval.SIGNED and bool(set(policy.signers.values()) & about.signers)
        assert known or signed
        assert about.review is not Review.REFUSED


@given(policy=policies, about=cases, data=st.data())
def test_a_policy_that_allows_less_never_lets_more_in(policy: Policy, about: Facts, data: st.DataObject) -> None:
    def fewer(values: frozenset[str] | None) -> frozenset[str]:
        return frozenset(data.draw(st.sets(st.sampled_from(sorted(values))) if values else st.just(set())))

    stricter = dataclasses.replace(
        policy,
        approve=data.draw(st.sampled_from([policy.approve, Approval.SIGNED, Approval.REVIEWED]))
        if policy.approve is Approval.ANYTHING
        else policy.approve,
        signers=dict(list(policy.signers.items())[: data.draw(st.integers(0, 2))]),
        digests=fewer(policy.digests),
        packages=policy.packages if policy.packages is None else policy.packages[: data.draw(st.integers(0, 2))],
        runtimes=data.draw(st.sampled_from([policy.runtimes, fewer(policy.runtimes)])),
        networks=data.draw(st.sampled_from([policy.networks, fewer(policy.networks)])),
    )
    if isinstance(stricter.judge(about, NOW), Allowed):
        assert isinstance(policy.judge(about, NOW), Allowed)
    if isinstance(policy.judge(about, NOW), Refused):
        assert isinstance(stricter.judge(about, NOW), Refused)


def from_file(folder: Path, text: str) -> Policy:
    file = folder / "policy.toml"
    file.write_text(text)
    return read_policy(file).policy


def hours(folder: Path, text: str) -> Policy:
    return from_file(folder, f'approve = "anything"\n[[hours]]\n{text}\n')


@pytest.mark.parametrize(
    ("text", "now", "until"),
    [
        ('from = "08:00"\nto = "18:00"\nzone = "UTC"', "2026-03-02T07:59:59", "2026-03-02T08:00"),
        ('from = "08:00"\nto = "18:00"\nzone = "UTC"', "2026-03-02T08:00", None),
        ('from = "08:00"\nto = "18:00"\nzone = "UTC"', "2026-03-02T18:00", "2026-03-03T08:00"),
        ('from = 08:00:00\nto = 18:00:00\nzone = "UTC"', "2026-03-02T17:59", None),
        ('days = ["sat"]\nfrom = "00:00"\nto = "24:00"\nzone = "UTC"', "2026-03-02T12:00", "2026-03-07T00:00"),
        ('days = ["sat"]\nfrom = "00:00"\nto = "24:00"\nzone = "UTC"', "2026-03-07T23:59", None),
        # Over midnight: the night of Monday is that which begins on Monday.
        ('days = ["mon"]\nfrom = "22:00"\nto = "06:00"\nzone = "UTC"', "2026-03-03T05:59", None),
        ('days = ["mon"]\nfrom = "22:00"\nto = "06:00"\nzone = "UTC"', "2026-03-02T05:59", "2026-03-02T22:00"),
        ('days = ["mon"]\nfrom = "22:00"\nto = "06:00"\nzone = "UTC"', "2026-03-03T06:00", "2026-03-09T22:00"),
        # Stockholm is an hour before UTC in winter, two in summer; the clocks change on 29 March 2026.
        ('from = "08:00"\nto = "18:00"\nzone = "Europe/Stockholm"', "2026-03-28T06:59", "2026-03-28T07:00"),
        ('from = "08:00"\nto = "18:00"\nzone = "Europe/Stockholm"', "2026-03-28T18:00", "2026-03-29T06:00"),
    ],
)
def test_hours(tmp_path: Path, text: str, now: str, until: str | None) -> None:
    policy = hours(tmp_path, text)
    moment = datetime.fromisoformat(now).replace(tzinfo=UTC)
    verdict = policy.judge(FACTS, moment)
    if until is None:
        assert isinstance(verdict, Allowed)
    else:
        assert verdict == NotNow(until=datetime.fromisoformat(until).replace(tzinfo=UTC))


@given(
    minutes=st.integers(0, 14 * 24 * 60),
    begin=st.times(),
    end=st.times(),
    days=st.sets(st.integers(0, 6), min_size=1),
    zone=st.sampled_from(["UTC", "Europe/Stockholm", "America/New_York", "Asia/Kolkata"]),
)
def test_work_is_taken_at_the_moment_that_was_told(
    minutes: int, begin: Any, end: Any, days: set[int], zone: str
) -> None:
    policy = Policy(hours=(Hours(days=frozenset(days), begin=begin, end=end, zone=ZoneInfo(zone)),))
    now = datetime(2026, 3, 20, tzinfo=UTC) + timedelta(minutes=minutes)  # over a change of the clocks
    until = policy.closed_until(now)
    if until is not None:
        assert until > now
        assert policy.closed_until(until) is None


def test_databases_are_seen_by_those_whom_the_policy_names() -> None:
    policy = Policy(
        signers={"ada": ADA},
        databases={
            "open": DatabaseRule(),
            "ehr": DatabaseRule(packages=("ehr-.*",)),
            "lab": DatabaseRule(signers=frozenset({"ada"})),
            "both": DatabaseRule(packages=("ehr-.*",), signers=frozenset({"ada"})),
            "nobody": DatabaseRule(packages=()),
        },
    )
    every = ["open", "ehr", "lab", "both", "nobody", "unnamed"]
    by_ada = frozenset({ADA})
    assert policy.databases_of(FACTS, every) == {"open"}
    assert policy.databases_of(facts(name="ehr-1"), every) == {"open", "ehr"}
    assert policy.databases_of(facts(signers=by_ada), every) == {"open", "lab"}
    assert policy.databases_of(facts(name="ehr-1", signers=by_ada), every) == {"open", "ehr", "lab", "both"}
    assert SIGNED.databases_of(FACTS, every) == set(every)


EVERYTHING = f"""
approve = "signed"
digests = ["{DIGEST}"]
packages = ["digits", "hospital-.*"]
runtimes = ["docker"]
networks = ["none"]
installs = false

[signers]
ada = "{public_key_text(ADA)}"

[databases]
default = {{}}
ehr = {{ packages = ["ehr-.*"], signers = ["ada"] }}

[limits]
memory_bytes = "4GiB"
cpus = 2
cpu_s = 600.0
pids = 100
time_s = 3600
output_bytes = 65536
tmpfs_bytes = "64MiB"
shm_bytes = "16MiB"
disk_bytes = "2GiB"

[[hours]]
days = ["sat", "sun"]
from = "18:00"
to = "24:00"
zone = "Europe/Stockholm"
"""


def test_a_file_with_every_key(tmp_path: Path) -> None:
    policy = from_file(tmp_path, EVERYTHING)
    assert policy.signers == {"ada": ADA}
    assert policy.limits == PolicyLimits(
        memory_bytes=4 << 30,
        cpus=2,
        cpu_s=600,
        pids=100,
        time_s=3600,
        output_bytes=65536,
        tmpfs_bytes=64 << 20,
        shm_bytes=16 << 20,
        disk_bytes=2 << 30,
    )
    document = policy_document(policy)
    assert document["hours"] == [{"days": ["sat", "sun"], "from": "18:00", "to": "00:00", "zone": "Europe/Stockholm"}]
    assert document["databases"]["ehr"] == {"packages": ["ehr-.*"], "signers": ["ada"]}
    assert set(document) == {field.name for field in dataclasses.fields(Policy)}


def test_an_empty_file_asks_for_approval_of_everything(tmp_path: Path) -> None:
    assert from_file(tmp_path, "") == SIGNED == default_policy(loopback=False).policy
    assert default_policy(loopback=True).policy is ANYTHING


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("aprove = 'anything'", "aprove is no key. Did you mean approve?"),
        ("colour = 1", "colour is no key. Known are approve, databases,"),
        ("approve = 'some'", 'approve = "some" is wrong: it is one of signed, reviewed, anything'),
        ("signers = {ada = 'ed25519:00'}", "signers.ada = \"ed25519:00\" is wrong: 'ed25519:00' is no public key"),
        ("digests = ['ab']", 'digests.0 = "ab" is wrong: a digest is 64 hexadecimal digits'),
        ("packages = ['(']", 'packages.0 = "(" is wrong: it is no regular expression'),
        ("packages = 'digits'", 'packages = "digits" is wrong: input should be a valid list'),
        ("installs = 'no'", 'installs = "no" is wrong: input should be a valid boolean'),
        ("limits = {memory = 1}", "limits.memory is no key. Did you mean memory_bytes?"),
        ("limits = {pids = 0}", "limits.pids = 0 is wrong: input should be greater than 0"),
        ("limits = {time_s = inf}", "limits.time_s = Infinity is wrong: input should be a finite number"),
        ("limits = {memory_bytes = '4 potatoes'}", "a size is a number of bytes or a number and a unit"),
        ("hours = [{from = '08:00', to = '18:00'}]", "hours.0.zone is needed"),
        ("hours = [{from = '8', to = '18:00', zone = 'UTC'}]", 'hours.0.from = "8" is wrong: a time of day is written'),
        ("hours = [{from = '08:00', to = '24:01', zone = 'UTC'}]", "a day ends at 24:00"),
        ("hours = [{from = '08:00', to = '18:00', zone = 'Mars'}]", 'hours.0.zone = "Mars" is wrong: a time zone'),
        ("hours = [{from = '08:00', to = '18:00', zone = 'UTC', days = ['Mo']}]", "a day is one of mon, tue"),
        ("hours = [{from = '08:00', to = '18:00', zone = 'UTC', days = []}]", "hours.0.days = [] is wrong"),
        ("databases = {ehr = {signers = ['bob']}}", "databases.ehr.signers names bob, who is not among the signers"),
        ("approve = ", "is not TOML"),
    ],
)
def test_a_file_that_is_wrong_names_key_and_what_was_expected(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(BadSettings) as caught:
        from_file(tmp_path, text)
    assert told in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match="can't be read"):
        read_policy(tmp_path / "none.toml")


def settings(**changes: Any) -> ClientSettings:
    return ClientSettings(**{"network": "reducer.example.org:7400", "data": {"default": "/srv"}} | changes)


def test_beyond_the_loopback_nothing_runs_by_itself(tmp_path: Path) -> None:
    assert site_policy(settings()).policy is SIGNED
    assert site_policy(settings(network="127.0.0.1:7400")).policy is ANYTHING
    file = tmp_path / "policy.toml"
    file.write_text('approve = "anything"\n[databases]\ndefault = {}\n')
    assert site_policy(settings(policy=file)).policy.approve is Approval.ANYTHING
    with pytest.raises(BadSettings, match="names the databases default, which this client does not"):
        site_policy(settings(policy=file, data={}))


def runnel(capsys: pytest.CaptureFixture[str], *arguments: str) -> Said:
    capsys.readouterr()
    status = main(["client", *arguments])
    captured = capsys.readouterr()
    return Said(status=status, out=captured.out, err=captured.err)


def test_a_policy_is_shown_as_the_client_would_take_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "policy.toml"
    file.write_text(EVERYTHING)
    said = runnel(capsys, "policy", "check", str(file))
    assert said.status == 0
    for shown in ("hospital-.*", "sat sun 18:00 to 00:00 Europe/Stockholm", "ehr: packages ehr-.* and signers ada"):
        assert shown in said.out
    assert runnel(capsys, "policy", "check", str(file), "--json").document["policy"]["limits"]["pids"] == 100
    file.write_text("aprove = 1")
    wrong = runnel(capsys, "policy", "check", str(file))
    assert wrong.status == 2
    assert "Did you mean approve?" in wrong.err


def test_commands_of_a_site_that_make_no_sense(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = ("--state", str(tmp_path))
    assert "No package waits" in runnel(capsys, "review", *here).out
    assert "The log is empty" in runnel(capsys, "audit", *here).out
    for arguments, told in (
        (("review", "--state", str(tmp_path / "none")), "There is no folder"),
        (("review", *here, "approve", "abc"), "No package 'abc' waits here"),
        (("audit", *here, "--since", "yesterday"), "expected was a time"),
        (("audit", *here, "--contains", "ab"), "has no record with the hash ab"),
    ):
        said = runnel(capsys, *arguments)
        assert said.status == 1
        assert told in said.err
    approved = runnel(capsys, "review", *here, "approve", DIGEST)
    assert (approved.status, DIGEST in approved.out) == (0, True)
    assert "review.approved" in runnel(capsys, "audit", *here, "--since", "1h").out
    assert "review.approved" not in runnel(capsys, "audit", *here, "--since", "2999-01-01").out


def test_a_cage_is_what_the_policy_makes_of_it() -> None:
    assert site_cage(SIGNED) == Cage()
    sizes: dict[str, Any] = {
        "memory_bytes": 1 << 30,
        "tmpfs_bytes": 1 << 24,
        "shm_bytes": 1 << 23,
        "disk_bytes": 1 << 28,
    }
    limits = PolicyLimits(cpus=1.5, pids=7, time_s=1, **sizes)
    allowed = Policy(limits=limits, networks=frozenset({"b", "a", "none"}))
    assert site_cage(allowed) == Cage(cpus=1.5, pids=7, **sizes)
    assert site_cage(Policy(networks=frozenset({"b", "a"}))).network == "a"
    with pytest.raises(BadSettings, match="would be no cage"):
        site_cage(Policy(networks=frozenset({"host"})))
