"""Container tasks: what is asked of a site."""

from runnel.common.tasks.site_numbers import site_number
from runnel.common.tasks.spec import (
    MAX_SPEC,
    MAX_WITHIN,
    Blob,
    Content,
    Contract,
    Executor,
    InputFile,
    Language,
    Resources,
    Selection,
    TaskSpec,
    task_spec,
)

__all__ = [
    "MAX_SPEC",
    "MAX_WITHIN",
    "Blob",
    "Content",
    "Contract",
    "Executor",
    "InputFile",
    "Language",
    "Resources",
    "Selection",
    "TaskSpec",
    "site_number",
    "task_spec",
]
