"""The tasks and runs that one central function sees, by the integers that its algorithm client knows them by."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from runnel.client.tasks.vantage6_asked import databases_of, input_of, named_always
from runnel.client.tasks.vantage6_files import COLLABORATION, OWN_RUN, OWN_TASK, Profile
from runnel.common.errors import InvalidInput, NotFound
from runnel.common.ids import valid_name
from runnel.common.protocol import TaskOrder
from runnel.common.tasks import Content, TaskSpec
from runnel.common.tasks.asks import Site, SubRun, TaskAnswer
from runnel.common.tasks.site_numbers import numbered_sites, site_number

_PENDING = "pending"
_COMPLETED = "completed"
_STATUS = {
    "queued": _PENDING,
    "assigned": "initializing",
    "preparing": "initializing",
    "running": "active",
    "awaiting-release": "active",
    "pushing": "active",
    "done": _COMPLETED,
    "rejected": "not allowed",
    "cancelled": "killed by user",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What a sub-task asks of some sites: its description, and under which key the network knows that it was asked."""

    spec: TaskSpec
    sites: tuple[str, ...]
    key: str


@dataclass(slots=True, kw_only=True)
class SubTask:
    """A sub-task. Each ``input`` that differs is a task of the network's own, in ``tasks``."""

    number: int
    name: str
    description: str
    inputs: Mapping[str, str]  # base64 by site
    databases: Sequence[Mapping[str, Any]]
    runs: Mapping[str, int]  # number by site
    created_at: datetime
    tasks: list[str] = field(default_factory=list)
    told: dict[str, SubRun] = field(default_factory=dict)  # by site, the newest
    finished_at: datetime | None = None

    @property
    def ended(self) -> bool:
        """Whether all its runs have ended, well or not: one that failed ends none of the others."""
        return len(self.told) == len(self.runs) and all(each.result or ended(each.state) for each in self.told.values())

    @property
    def status(self) -> str:
        """The status of the task, which is the first bad end of a run once all have ended."""
        states = [run_status(self.told.get(site)) for site in self.runs]
        if self.ended:
            return next((state for state in states if state != _COMPLETED), _COMPLETED)
        if all(state == _PENDING for state in states):
            return _PENDING
        return "initializing" if set(states) <= {_PENDING, "initializing"} else "active"


def ended(state: str) -> bool:
    """Whether a run in this state does not change any more."""
    return state in ("done", "failed", "rejected", "cancelled")


def run_status(run: SubRun | None) -> str:
    """Return the status of a run in vantage6's words."""
    if run is None:
        return _PENDING
    if run.state == "failed":
        return "crashed" if run.result is not None and run.result.exit_code else "failed"
    return _STATUS.get(run.state, "unknown error")


def moment(at: datetime | None) -> str | None:
    """Return a time as a vantage6 server writes it, with its microseconds."""
    return None if at is None else at.astimezone(UTC).isoformat(timespec="microseconds")


def link(kind: str, number: int) -> dict[str, Any]:
    """Return a relation to an object."""
    return {"id": number, "link": f"/{kind}/{number}", "methods": ["GET"]}


class SubTasks:
    """Numbers what one central function sees, and says it as a vantage6 server does.

    Its own task and run are 1; sub-tasks and their runs count from 2 in the order in which they are asked for, so that
    a run that begins anew finds what it asked before under the same numbers, and does not ask for it twice.

    Args:
        order: of the central function.
        spec: its task, whose image, databases and limits its sub-tasks have.
        site: where it runs.
        labels: of the databases that it was given.
        profile: the release in whose words it is told.
    """

    def __init__(
        self,
        *,
        order: TaskOrder,
        spec: TaskSpec,
        site: str,
        labels: Sequence[str],
        profile: Profile = Profile.V4,
    ) -> None:
        self.profile = profile
        self._order = order
        self._spec = spec
        self._site = site
        self._labels = frozenset(labels)
        self._tasks: dict[int, SubTask] = {}
        self._asked: Counter[str] = Counter()
        self._next_run = OWN_RUN + 1
        self._sites: dict[int, str] = {}
        self._attached: dict[str, bool] = {}

    @property
    def image(self) -> str:
        """The only image that its sub-tasks may have."""
        return self._spec.executors[0].image

    # ---- sites

    def know(self, sites: Iterable[Site]) -> None:
        """Take in which sites there are; who was seen once keeps its number."""
        self._attached |= {each.name: each.attached for each in sites}
        known = set(self._sites.values())
        fresh = sorted(name for name in {*self._attached, self._site} if name not in known)
        for number, name in numbered_sites(fresh).items():
            while number in self._sites:
                number += 1
            self._sites[number] = name

    def organizations(self) -> list[dict[str, Any]]:
        """Return the sites, in the order of their numbers; the one of this run is among them."""
        return [self.organization(number) for number in sorted(self._sites)]

    def organization(self, number: int) -> dict[str, Any]:
        """Return a site.

        Raises:
            NotFound: there is none of this number.
        """
        name = self._name_of(number)
        return {
            "id": number,
            "name": name,
            "domain": "",
            "address1": "",
            "address2": "",
            "zipcode": "",
            "country": "",
            "public_key": "",
            "collaborations": f"/collaboration?organization_id={number}",
            "nodes": f"/node?organization_id={number}",
            "runs": f"/run?organization_id={number}",
        }

    def nodes(self) -> list[dict[str, Any]]:
        """Return the clients of the sites: one for each, of the same number."""
        return [
            {
                "id": number,
                "name": name,
                "ip": None,
                "status": "online" if self._attached.get(name) or name == self._site else "offline",
                "organization": link("organization", number),
                "collaboration": link("collaboration", COLLABORATION),
                "type": "node",
            }
            for number, name in sorted(self._sites.items())
        ]

    def _name_of(self, number: int) -> str:
        try:
            return self._sites[number]
        except KeyError:
            raise NotFound(f"Organization id={number} not found") from None

    def _number_of(self, site: str) -> int:
        return next((number for number, name in self._sites.items() if name == site), site_number(site))

    # ---- new tasks

    def plan(self, body: Mapping[str, Any]) -> tuple[SubTask, dict[str, tuple[str, ...]]]:
        """Return a sub-task as a container asks for it, and the sites of each input that differs (base64).

        Raises:
            InvalidInput: it lacks something, or is for sites or databases that there are none of.
        """
        asked = body.get("organizations")
        if not isinstance(asked, list) or not asked or not all(isinstance(each, dict) for each in asked):
            raise InvalidInput("A task needs organizations, each with id and input.")
        inputs: dict[str, str] = {}
        for each in asked:
            site = self._site_asked(each.get("id"))
            inputs[site] = input_of(each, body)
        databases = databases_of(body)
        if named_always(body) is not None:
            databases = [each for each in databases if each["label"] in self._labels]
        if unknown := sorted({each["label"] for each in databases} - self._labels):
            raise InvalidInput(f"The task has no database {', '.join(unknown)} to give on.")
        runs = dict(zip(inputs, range(self._next_run, self._next_run + len(inputs)), strict=True))
        task = SubTask(
            number=max(self._tasks, default=OWN_TASK) + 1,
            name=str(body.get("name", ""))[:200],
            description=str(body.get("description") or "")[:10_000],
            inputs=inputs,
            databases=databases,
            runs=runs,
            created_at=datetime.now(UTC),
        )
        self._tasks[task.number] = task
        self._next_run += len(runs)
        groups: dict[str, tuple[str, ...]] = {}
        for site, text in inputs.items():
            groups[text] = (*groups.get(text, ()), site)
        return task, groups

    def drop(self, task: SubTask) -> None:
        """Forget a sub-task that the network does not take."""
        self._tasks.pop(task.number, None)

    def part(self, task: SubTask, payload: Content, sites: tuple[str, ...]) -> Part:
        """Return what is asked of the network for sites with the same input."""
        parent = self._spec
        spec = TaskSpec(
            name=task.name,
            description=task.description,
            executors=parent.executors,
            contract=parent.contract,
            profile=parent.profile,
            payload=payload,
            selections=parent.selections,
            databases=tuple(each["label"] for each in task.databases if each["label"] in parent.databases),
            group=parent.group,
            resources=parent.resources,
        )
        # Asked again in the same words it is another task each time, and the same one when the run begins anew.
        words = f"{self._order.run_id}\0{spec.as_json()}\0{','.join(sites)}"
        digest = hashlib.sha256(words.encode()).hexdigest()[:40]
        self._asked[digest] += 1
        return Part(spec=spec, sites=sites, key=f"{digest}-{self._asked[digest]}")

    def _site_asked(self, number: Any) -> str:
        if isinstance(number, str):  # of a site by its name, which may be away; the network knows whether it is one
            return valid_name(number)
        if isinstance(number, bool) or not isinstance(number, int) or number not in self._sites:
            raise InvalidInput(f"There is no organization {number!r} in this collaboration.")
        return self._sites[number]

    # ---- tasks and runs

    def find(self, number: int) -> SubTask:
        """Return a sub-task.

        Raises:
            NotFound: this run has asked for none of this number.
        """
        try:
            return self._tasks[number]
        except KeyError:
            raise NotFound(f"Task id={number} is not found") from None

    def find_run(self, number: int) -> tuple[SubTask, str]:
        """Return the sub-task and the site of a run.

        Raises:
            NotFound: this run's sub-tasks have none of this number.
        """
        for task in self._tasks.values():
            for site, run in task.runs.items():
                if run == number:
                    return task, site
        raise NotFound(f"Run id={number} not found!")

    @property
    def tasks(self) -> list[SubTask]:
        """The sub-tasks, the newest first."""
        return [self._tasks[number] for number in sorted(self._tasks, reverse=True)]

    @staticmethod
    def heard(task: SubTask, answers: Iterable[TaskAnswer]) -> None:
        """Take in what has become of a sub-task."""
        for answer in answers:
            task.told |= {run.site: run for run in answer.runs if run.site in task.runs}
        if task.ended and task.finished_at is None:
            task.finished_at = datetime.now(UTC)

    def own(self) -> dict[str, Any]:
        """Return the central function's own task."""
        return self._task(OWN_TASK, self._spec.name, self._spec.description, "active", parent=None) | {
            "databases": [{"label": label} for label in sorted(self._labels)],
        }

    def status(self, task: SubTask) -> str:
        """Return the status of a sub-task; clients of release 5 wait for two words only."""
        if self.profile is not Profile.V5:
            return task.status
        if not task.ended:
            return "awaiting"
        return _COMPLETED if task.status == _COMPLETED else "failed"

    def show(self, task: SubTask) -> dict[str, Any]:
        """Return a sub-task."""
        return self._task(
            task.number, task.name, task.description, self.status(task), parent=link("task", OWN_TASK)
        ) | {
            "created_at": moment(task.created_at),
            "finished_at": moment(task.finished_at),
            "complete": task.ended,
            "databases": list(task.databases),
        }

    def _task(
        self, number: int, name: str, description: str, status: str, *, parent: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        return {
            "id": number,
            "name": name,
            "description": description,
            "image": self.image,
            "collaboration": link("collaboration", COLLABORATION),
            "study": None,
            "algorithm_store": None,
            "job_id": OWN_TASK,
            "parent": parent,
            "init_org": link("organization", self._number_of(self._site)),
            "init_user": None,
            "status": status,
            "complete": False,
            "created_at": None,
            "finished_at": None,
            "runs": f"/run?task_id={number}",
            "results": f"/result?task_id={number}",
            "children": f"/task?parent_id={number}",
        }

    def show_run(self, task: SubTask, site: str) -> dict[str, Any]:
        """Return a run."""
        number, organization = task.runs[site], self._number_of(site)
        status = "online" if self._attached.get(site) or site == self._site else "offline"
        told = task.told.get(site)
        return {
            "id": number,
            "input": task.inputs[site],
            "status": run_status(told),
            "log": _why(told),
            "assigned_at": moment(task.created_at),
            "started_at": None,
            "finished_at": moment(task.finished_at) if told is not None and ended(told.state) else None,
            "cleanup_at": None,
            "blob_storage_used": False,
            "organization": link("organization", organization),
            "node": {"id": organization, "ip": None, "name": site, "status": status},
            "ports": [],
            "task": link("task", task.number),
            "results": link("result", number),
        }

    def show_result(self, task: SubTask, site: str) -> dict[str, Any]:
        """Return what is told with the result of a run, without the result itself."""
        number = task.runs[site]
        return {
            "id": number,
            "result": None,
            "blob_storage_used": False,
            "run": link("run", number),
            "task": link("task", task.number),
            "cleanup_at": None,
        }


def _why(run: SubRun | None) -> str | None:
    failure = run.result.failure if run is not None and run.result is not None else None
    return None if failure is None else f"{failure.code}: {failure.message}"
