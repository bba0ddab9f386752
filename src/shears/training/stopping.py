"""When a training saves beside `save_steps`: two minutes after the last checkpoint, and at a signal."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from accelerate.utils import gather_object
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from shears.errors import Interrupted, heard_signals
from shears.training.processes import num_processes

SECONDS = 120.0  # between two checkpoints
REPEATED = 1.0  # seconds in which a launcher may send a signal again that its processes already have


class SaveInTime(TrainerCallback):
    """Saves after the step in hand when time or a signal asks for it; a signal also ends the training.

    `clock` returns seconds. Under several processes all follow the one that is asked.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.saved = clock()  # when the last checkpoint was written, or the training began
        self.number = 0  # of the signal
        self.signalled = 0.0  # when

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Ask for a checkpoint if one is due, and for the end after a signal."""
        ends, is_due = self._agreed()
        control.should_save |= ends or is_due
        control.should_training_stop |= ends

    def on_save(self, *_: Any, **__: Any) -> None:
        """Count the seconds from this checkpoint."""
        self.saved = self.clock()

    def _agreed(self) -> tuple[bool, bool]:
        """Return whether a signal came and whether time is up, in any process."""
        own = (self.number, self.clock() - self.saved >= SECONDS)
        parts = [own] if num_processes() == 1 else gather_object([own])
        if not self.number:
            self.number = max(number for number, _ in parts)
            self.signalled = self.clock()
        return self.number > 0, any(is_due for _, is_due in parts)

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Note a first SIGINT or SIGTERM in the block, and raise Interrupted behind it.

        A second one raises at once. Outside of the main thread Python hears no signals.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        handlers = {number: signal.signal(number, self._note) for number in heard_signals()}
        try:
            yield
            if self._agreed()[0]:
                raise Interrupted(self.number)
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _note(self, number: int, _: object) -> None:
        if not self.number:
            self.number = number
            self.signalled = self.clock()
        elif num_processes() == 1 or self.clock() - self.signalled > REPEATED:
            raise Interrupted(number)
