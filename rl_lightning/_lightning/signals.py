"""Signals: the handlers take a note, and the loops look at it where nothing is half done."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import TYPE_CHECKING, Any

from pytorch_lightning.trainer.connectors.signal_connector import _SignalConnector
from pytorch_lightning.utilities.exceptions import SIGTERMException

if TYPE_CHECKING:
    from rl_lightning.trainer import Trainer


class RLSignalConnector(_SignalConnector):
    """SIGTERM and SIGINT (Ctrl-C) end training after the env step that is under way, SIGUSR1 only saves.

    A second Ctrl-C interrupts at once. Under Slurm, the signal for requeueing saves and requeues, as in Lightning.

    Attributes:
        received: the signal that nobody has heeded yet; None: there is none.
    """

    trainer: Trainer
    received: int | None = None

    def register_signal_handlers(self) -> None:
        self.received = None
        super().register_signal_handlers()
        if self.trainer.training and threading.current_thread() is threading.main_thread():
            if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
                signal.signal(signal.SIGINT, self._note_once)
            if hasattr(signal, "SIGUSR1") and not self._has_already_handler(signal.SIGUSR1):
                signal.signal(signal.SIGUSR1, self._note)

    def heed(self) -> None:
        """Do what was asked for; called where what is saved is whole.

        Raises:
            SIGTERMException, KeyboardInterrupt: training ends here.
        """
        number, self.received = self.received, None
        if number == signal.SIGTERM:
            raise SIGTERMException
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        if self._requeues:
            super()._slurm_sigusr_handler_fn(number, None)  # type: ignore[arg-type]
        elif number is not None:
            self.trainer.save_on_request()

    _requeues = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number

    def _note_once(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def _slurm_sigusr_handler_fn(self, signum: Any, _: Any) -> None:
        self.received, self._requeues = signum, True

    def _sigterm_notifier_fn(self, signum: Any, _: Any) -> None:
        super()._sigterm_notifier_fn(signum, _)
        self.received = signum
