"""Times several trainings side by side: each has its own process, and one makes a step while the others wait.

steps = take_turns({"one": partial(train, ...), "other": partial(train, ...)}, 30)
steps["one"].seconds                  # of the processor, in its 30 optimizer steps
steps["one"].peak                     # bytes of resident memory, the most that its process ever had

Seconds are those that all threads of the process spent computing: what else runs on the cores does not count, but
threads that wait by spinning do.
"""

import multiprocessing
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import DEFAULT_CALLBACKS

from benchmarks.memory import memory


@dataclass
class Taken:
    """The processor's seconds in a training's steps, and the peak of its process's resident memory in bytes."""

    seconds: list[float]
    peak: int = 0

    def add(self, message: "Message") -> None:
        """Add a step."""
        self.seconds.append(message.seconds)
        self.peak = max(self.peak, message.peak)


class Message(NamedTuple):
    """What a training reports of a step: the processor's seconds, and the peak of resident memory so far in bytes."""

    seconds: float
    peak: int


def take_turns(trainings: Mapping[str, Callable[[], object]], steps: int) -> dict[str, Taken]:
    """Return every training's optimizer steps; the trainings take turns in a new order at each step.

    A training is called in its own process (so it must be picklable) and runs one transformers Trainer for that many
    steps. RuntimeError if one ends early.
    """
    context = multiprocessing.get_context("spawn")
    processes = {}
    batons: dict[str, Connection] = {}
    for name, training in trainings.items():
        batons[name], theirs = context.Pipe()
        processes[name] = context.Process(target=_take_part, args=(training, theirs), daemon=True)
        processes[name].start()
        theirs.close()  # the process has its own copy, so its end is an EOF here
        _hear(name, batons[name])  # loads while the others wait
    taken = {name: Taken([]) for name in trainings}
    for step in range(steps):
        for name in random.Random(step).sample(list(trainings), len(trainings)):
            batons[name].send(None)
            taken[name].add(_hear(name, batons[name]))
    for name, process in processes.items():
        batons[name].send(None)
        process.join()
    return taken


def step_seconds(trainings: Mapping[str, Callable[[], object]], steps: int) -> dict[str, list[float]]:
    """Return the seconds of every training's steps, as `take_turns` takes them."""
    return {name: taken.seconds for name, taken in take_turns(trainings, steps).items()}


def _hear(name: str, baton: Connection) -> Message:
    try:
        message: Message = baton.recv()
    except EOFError as error:
        raise RuntimeError(f"every training must make all steps, {name!r} ended early; its error is above") from error
    return message


def _take_part(training: Callable[[], object], baton: Connection) -> None:
    callbacks: list[Any] = DEFAULT_CALLBACKS  # of every Trainer in this process
    callbacks.append(_Turn(baton))
    training()


class _Turn(TrainerCallback):
    """Waits for its turn before every step, and sends the processor's seconds from there to the end of the step.

    Trainer's work between two steps (logging, the next batch) counts in the second step.
    """

    def __init__(self, baton: Connection) -> None:
        self.baton = baton
        self.started = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Report that everything is loaded."""
        self._pass_on(0.0)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Report a step and wait; also after the last step, because what follows would disturb the others."""
        self._pass_on(time.process_time() - self.started)

    def _pass_on(self, seconds: float) -> None:
        self.baton.send(Message(seconds, memory("VmHWM")))
        self.baton.recv()
        self.started = time.process_time()
