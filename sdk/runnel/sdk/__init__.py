"""The Python interface to a network, for people and their programs."""

from runnel.sdk.combining import SITE_COLUMN, SITES_VARIABLE, SitePart, SiteResults, put_together
from runnel.sdk.connection import Attempts
from runnel.sdk.datasets import Dataset
from runnel.sdk.network import DEFAULT_URL, Network
from runnel.sdk.task_values import Run, RunFile, RunLine, Task
from runnel.sdk.tasks import ALL_SITES
from runnel.sdk.values import Contribution, Event, LogLine, Model, Node, Package, Round, Session, Signer, Status, Token

__all__ = [
    "ALL_SITES",
    "DEFAULT_URL",
    "SITES_VARIABLE",
    "SITE_COLUMN",
    "Attempts",
    "Contribution",
    "Dataset",
    "Event",
    "LogLine",
    "Model",
    "Network",
    "Node",
    "Package",
    "Round",
    "Run",
    "RunFile",
    "RunLine",
    "Session",
    "Signer",
    "SitePart",
    "SiteResults",
    "Status",
    "Task",
    "Token",
    "put_together",
]
