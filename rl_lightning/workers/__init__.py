"""Worker processes: started, supervised and ended, and what they share."""

from rl_lightning.workers.context import WorkerContext
from rl_lightning.workers.shared import Counter, SharedBlock, check_free_memory
from rl_lightning.workers.supervisor import Supervisor

__all__ = ["Counter", "SharedBlock", "Supervisor", "WorkerContext", "check_free_memory"]
