"""The policy file of a site: TOML, read strictly, so that a misspelt rule is an error and no missing rule."""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import time
from pathlib import Path
from typing import Annotated, Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from runnel.client.domain.cage import NO_NETWORK
from runnel.client.domain.egress import EgressHost, egress_host
from runnel.client.domain.policy import (
    ANYTHING,
    DAYS,
    SIGNED,
    Approval,
    DatabaseRule,
    Hours,
    Policy,
    PolicyLimits,
)
from runnel.client.domain.task_policy import (
    DEFAULT_LOG_BYTES,
    DEFAULT_OUTPUT_BYTES,
    DEFAULT_OUTPUT_FILES,
    Pull,
    TaskLimits,
    TaskPolicy,
)
from runnel.client.file_problems import problem
from runnel.common.errors import BadSettings
from runnel.common.settings import Bytes, checked
from runnel.compute_package import public_key_of, public_key_text


@dataclass(frozen=True, slots=True, kw_only=True)
class SitePolicy:
    """A policy and where it comes from; ``fingerprint``: SHA-256 of the file, or of the words for a default."""

    policy: Policy
    source: str
    fingerprint: str


def read_policy(path: Path) -> SitePolicy:
    """Read and check a policy file.

    Raises:
        BadSettings: all that is wrong with it, in one message.
    """
    try:
        data = path.read_bytes()
        content = tomllib.loads(data.decode())
    except OSError as error:
        raise BadSettings(f"The policy file {path} can't be read: {error.strerror}.", file=str(path)) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadSettings(f"The policy file {path} is not TOML: {error}.", file=str(path)) from error
    try:
        policy = _File.model_validate(content).policy()
    except ValidationError as error:
        problems = " ".join(problem(details, _known) for details in error.errors())
        raise BadSettings(f"The policy file {path} is wrong. {problems}", file=str(path)) from error
    return SitePolicy(policy=policy, source=str(path), fingerprint=hashlib.sha256(data).hexdigest())


def default_policy(*, loopback: bool) -> SitePolicy:
    """Return the policy of a client that was given none; ``loopback``: its network is on its own machine."""
    source = "default on the loopback: anything" if loopback else "default: signed or approved"
    return SitePolicy(
        policy=ANYTHING if loopback else SIGNED,
        source=source,
        fingerprint=hashlib.sha256(source.encode()).hexdigest(),
    )


def policy_document(policy: Policy) -> dict[str, Any]:
    """Return a policy as JSON can say it, in the words of the file; what is left open is null."""
    limits = policy.limits
    return {
        "approve": policy.approve.value,
        "signers": {name: public_key_text(key) for name, key in policy.signers.items()},
        "digests": sorted(policy.digests),
        "packages": None if policy.packages is None else list(policy.packages),
        "runtimes": None if policy.runtimes is None else sorted(policy.runtimes),
        "networks": None if policy.networks is None else sorted(policy.networks),
        "installs": policy.installs,
        "hours": [
            {
                "days": [DAYS[day] for day in sorted(hours.days)],
                "from": f"{hours.begin:%H:%M}",
                "to": f"{hours.end:%H:%M}",
                "zone": hours.zone.key,
            }
            for hours in policy.hours
        ],
        "databases": None
        if policy.databases is None
        else {
            name: {
                "packages": None if rule.packages is None else list(rule.packages),
                "signers": None if rule.signers is None else sorted(rule.signers),
            }
            for name, rule in policy.databases.items()
        },
        "limits": {name: getattr(limits, name) for name in _Limits.model_fields},
        "tasks": None if policy.tasks is None else _tasks_document(policy.tasks),
    }


def _tasks_document(tasks: TaskPolicy) -> dict[str, Any]:
    rules = ("digests", "registries", "users", "organisations", "databases", "networks", "remote_review")
    told: dict[str, Any] = {"images": None if tasks.images is None else list(tasks.images)}
    for name in rules:
        value = getattr(tasks, name)
        told[name] = None if value is None else sorted(value)
    return told | {
        "egress": [str(host) for host in tasks.egress],
        "central": tasks.central,
        "select": tasks.select,
        "pull": tasks.pull.value,
        "review": tasks.review,
        "minimum_rows": tasks.minimum_rows,
        "limits": {name: getattr(tasks.limits, name) for name in _TaskLimits.model_fields},
    }


def _public_key(text: str) -> str:
    public_key_of(text)
    return text


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"it is no regular expression: {error}") from error
    return text


def _clock(value: object) -> time:
    if isinstance(value, time):
        found = value
    elif isinstance(value, str) and (parts := re.fullmatch("([01][0-9]|2[0-4]):([0-5][0-9])", value)):
        hour, minute = int(parts[1]), int(parts[2])
        if (hour, minute) > (24, 0):
            raise ValueError("a day ends at 24:00")
        found = time(hour % 24, minute)  # the end of a day is the beginning of the next
    else:
        raise ValueError("a time of day is written 18:00, up to 24:00")
    return found


def _zone(text: object) -> ZoneInfo:
    try:
        return ZoneInfo(str(text))
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:  # OSError: of a name that is a folder
        raise ValueError(
            "a time zone is written as Europe/Stockholm or UTC, and this machine has to know it"
        ) from error


def _day(text: object) -> int:
    if text not in DAYS:
        raise ValueError(f"a day is one of {', '.join(DAYS)}")
    return DAYS.index(str(text))


def _approval(text: object) -> Approval:
    try:
        return Approval(text)
    except ValueError:
        raise ValueError(f"it is one of {', '.join(each.value for each in Approval)}") from None


def _digest(text: str) -> str:
    if re.fullmatch("[0-9a-f]{64}", text) is None:
        raise ValueError("a digest is 64 hexadecimal digits, as `runnel package build` prints it")
    return text


def _image_digest(text: str) -> str:
    if re.fullmatch("sha256:[0-9a-f]{64}", text) is None:
        raise ValueError("the digest of an image is sha256: and 64 hexadecimal digits")
    return text


def _pull(text: object) -> Pull:
    try:
        return Pull(text)
    except ValueError:
        raise ValueError(f"it is one of {', '.join(each.value for each in Pull)}") from None


def _egress(text: object) -> EgressHost:
    return egress_host(str(text))


_Pattern = Annotated[str, AfterValidator(_pattern)]
_Day = Annotated[int, BeforeValidator(_day)]
_Count = Annotated[int, Field(gt=0)]
_Number = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Size = Annotated[Bytes, Field(gt=0)]


class _Part(BaseModel):
    # Most clients have no such file.
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, arbitrary_types_allowed=True, defer_build=True)


class _Hours(_Part):
    days: list[_Day] = Field(default_factory=lambda: list(range(len(DAYS))), min_length=1)
    begin: Annotated[time, BeforeValidator(_clock)] = Field(alias="from")
    end: Annotated[time, BeforeValidator(_clock)] = Field(alias="to")
    zone: Annotated[ZoneInfo, BeforeValidator(_zone)]

    def hours(self) -> Hours:
        return Hours(days=frozenset(self.days), begin=self.begin, end=self.end, zone=self.zone)


class _Database(_Part):
    packages: list[_Pattern] | None = None
    signers: list[str] | None = None

    def rule(self) -> DatabaseRule:
        return DatabaseRule(
            packages=None if self.packages is None else tuple(self.packages),
            signers=None if self.signers is None else frozenset(self.signers),
        )


class _Limits(_Part):
    memory_bytes: _Size | None = None
    cpus: _Number | None = None
    cpu_s: _Number | None = None
    pids: _Count | None = None
    time_s: _Number | None = None
    output_bytes: _Size | None = None
    tmpfs_bytes: _Size | None = None
    shm_bytes: _Size | None = None
    disk_bytes: _Size | None = None


class _TaskLimits(_Part):
    memory_bytes: _Size | None = None
    cpus: _Number | None = None
    pids: _Count | None = None
    time_s: _Number | None = None
    disk_bytes: _Size | None = None
    tmpfs_bytes: _Size | None = None
    shm_bytes: _Size | None = None
    output_bytes: _Size = DEFAULT_OUTPUT_BYTES
    output_files: _Count = DEFAULT_OUTPUT_FILES
    log_bytes: _Size = DEFAULT_LOG_BYTES


class _Tasks(_Part):
    images: list[_Pattern] | None = None
    digests: list[Annotated[str, AfterValidator(_image_digest)]] | None = None
    registries: list[str] | None = None
    users: list[str] | None = None
    organisations: list[str] | None = None
    databases: list[str] | None = None
    networks: list[str] | None = None
    egress: list[Annotated[EgressHost, BeforeValidator(_egress)]] = Field(default_factory=list)
    central: bool = False
    select: bool = False
    pull: Annotated[Pull, BeforeValidator(_pull)] = Pull.MISSING
    review: bool = False
    remote_review: list[str] = Field(default_factory=list)
    minimum_rows: Annotated[int, Field(ge=0)] = 0
    limits: _TaskLimits = Field(default_factory=_TaskLimits)

    @model_validator(mode="after")
    def _some_images(self) -> _Tasks:
        if self.images is None and self.digests is None and self.registries is None:
            raise ValueError('tasks has to say which images run: images, digests or registries; images = [".*"] is all')
        return self

    @model_validator(mode="after")
    def _one_way_out(self) -> _Tasks:
        if self.egress and set(self.networks or ()) - {NO_NETWORK}:
            raise ValueError(
                "tasks has both egress and networks: egress needs no network but the run's own, so leave networks out"
            )
        return self

    def policy(self) -> TaskPolicy:
        sets = ("digests", "registries", "users", "organisations", "databases", "networks")
        rules = {name: None if (found := getattr(self, name)) is None else frozenset(found) for name in sets}
        return TaskPolicy(
            images=None if self.images is None else tuple(self.images),
            egress=tuple(self.egress),
            central=self.central,
            select=self.select,
            pull=self.pull,
            review=self.review,
            remote_review=frozenset(self.remote_review),
            minimum_rows=self.minimum_rows,
            limits=TaskLimits(**self.limits.model_dump()),
            **rules,
        )


class _File(_Part):
    approve: Annotated[Approval, BeforeValidator(_approval)] = Approval.SIGNED
    signers: dict[str, Annotated[str, checked(_public_key)]] = Field(default_factory=dict)
    digests: list[Annotated[str, AfterValidator(_digest)]] = Field(default_factory=list)
    packages: list[_Pattern] | None = None
    runtimes: list[str] | None = None
    networks: list[str] | None = None
    installs: bool = True
    hours: list[_Hours] = Field(default_factory=list)
    databases: dict[str, _Database] | None = None
    limits: _Limits = Field(default_factory=_Limits)
    tasks: _Tasks | None = None

    @model_validator(mode="after")
    def _known_signers(self) -> _File:
        for name, rule in (self.databases or {}).items():
            if unknown := sorted(set(rule.signers or ()) - self.signers.keys()):
                raise ValueError(f"databases.{name}.signers names {', '.join(unknown)}, who is not among the signers")
        return self

    def policy(self) -> Policy:
        return Policy(
            approve=self.approve,
            signers={name: public_key_of(text) for name, text in self.signers.items()},
            digests=frozenset(self.digests),
            packages=None if self.packages is None else tuple(self.packages),
            runtimes=None if self.runtimes is None else frozenset(self.runtimes),
            networks=None if self.networks is None else frozenset(self.networks),
            installs=self.installs,
            hours=tuple(each.hours() for each in self.hours),
            databases=None if self.databases is None else {name: each.rule() for name, each in self.databases.items()},
            limits=PolicyLimits(**self.limits.model_dump()),
            tasks=None if self.tasks is None else self.tasks.policy(),
        )


_TABLES: Mapping[str, type[BaseModel]] = {
    "hours": _Hours,
    "databases": _Database,
    "limits": _Limits,
    "tasks": _Tasks,
    "tasks.limits": _TaskLimits,
}


def _known(place: list[str]) -> list[str]:
    nested = place[:2] == ["tasks", "limits"] and len(place) > 2
    part = _File if len(place) == 1 else _TABLES[".".join(place[:2]) if nested else place[0]]
    return sorted(info.alias or name for name, info in part.model_fields.items())
