"""Where entry points run: one interface, and the runtime that starts them as processes."""

from runnel.client.runtimes.environment import EnvironmentCache
from runnel.client.runtimes.guard import Guard
from runnel.client.runtimes.installs import FednSource, Installs
from runnel.client.runtimes.log_capture import LogCapture
from runnel.client.runtimes.process import PreparedProcess, ProcessRuntime, describe_status
from runnel.client.runtimes.runtime import Call, Finished, Limits, LineSink, PackageFiles, Prepared, Runtime
from runnel.client.runtimes.variables import entry_point_variables, process_variables, site_variables

__all__ = [
    "Call",
    "EnvironmentCache",
    "FednSource",
    "Finished",
    "Guard",
    "Installs",
    "Limits",
    "LineSink",
    "LogCapture",
    "PackageFiles",
    "Prepared",
    "PreparedProcess",
    "ProcessRuntime",
    "Runtime",
    "describe_status",
    "entry_point_variables",
    "process_variables",
    "site_variables",
]
