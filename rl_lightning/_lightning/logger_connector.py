"""When metrics are logged, and who else sees them."""

from __future__ import annotations

import torch
from pytorch_lightning.trainer.connectors.logger_connector import _LoggerConnector


class RLLoggerConnector(_LoggerConnector):
    """Logs when the clock has crossed a multiple of `log_every_n_steps`, not where it falls on one."""

    log_due = False

    @property
    def should_update_logs(self) -> bool:
        return self.log_due if self.trainer.training else super().should_update_logs

    def publish(self, metrics: dict[str, float], prog_bar: tuple[str, ...] = ()) -> None:
        """Give callbacks and the progress bar these values.

        float64, because `best` is chosen by strict comparison.
        """
        self._callback_metrics.update({k: torch.tensor(v, dtype=torch.float64) for k, v in metrics.items()})
        self._progress_bar_metrics.update({k: metrics[k] for k in prog_bar if k in metrics})
