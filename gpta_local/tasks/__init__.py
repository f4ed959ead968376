"""What differs by task. `base.Task` is all that the outer loop knows of one."""

from __future__ import annotations

from gpta_local.config import Config
from gpta_local.tasks.base import Task


def open_task(config: Config) -> Task:
    """The configuration's task with its data read and checked."""
    from gpta_local.tasks.classification import ClassificationTask

    return ClassificationTask(config)
