"""What runs of tasks need to know of their site."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from runnel.client.domain.policy import Policy
from runnel.client.tasks.contract import Database, TaskContract
from runnel.client.tasks.surroundings import Groups
from runnel.common.tasks import Contract, Selection


class Selector(Protocol):
    """Takes selections from the site's databases; ends its queries when it is cancelled."""

    async def __call__(self, selections: Sequence[Selection], folder: Path, *, minimum_rows: int) -> None:
        """Write one CSV file for each selected table into ``folder``.

        Raises:
            RunnelError: a database, table or field is not there or not to be seen, or too little was found.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteFacts:
    """What runs need to know of this site.

    Args:
        name: of the client.
        policy: the site's, as it is now.
        databases: that containers may see whole, by label.
        selector: of the site's data; None: this client has none that could be selected from.
        variables: that contracts give to every container.
        settings: of contracts, by the contract.
        contracts: by name.
        groups: folders that runs share.
        time_s: the client's own limit for one run.
    """

    name: str
    policy: Callable[[], Policy]
    contracts: Mapping[Contract, TaskContract]
    groups: Groups
    databases: Mapping[str, Database] = field(default_factory=dict)
    selector: Selector | None = None
    variables: Mapping[str, str] = field(default_factory=dict, repr=False)
    settings: Mapping[Contract, Mapping[str, str]] = field(default_factory=dict, repr=False)
    time_s: float | None = None
