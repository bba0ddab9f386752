"""Walk the hidden states of calibration batches from one decoder block to the next.

A block is measured on the outputs of the blocks before it, which are already changed. Arguments are
recorded for every block and batch, because blocks of one model may get different ones (sliding
windows).
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from shears.errors import InputError
from shears.models.activations import Activations
from shears.models.blocks import Matrix, decoder_blocks, replaced_forwards
from shears.models.capture import Receive, capturing
from shears.models.devices import widen_norms
from shears.models.sources import BlockSource

PROBE_TOKENS = 2
KEPT = frozenset({"linear", "addmm", "scaled_dot_product_attention"})  # shared by repeated forwards
Batches = Sequence[Int[Tensor, "_ _"]]
Context = Callable[[], AbstractContextManager[Any]]
Call = tuple[tuple[Any, ...], dict[str, Any]]  # arguments of a block beside the hidden states


class IrregularBlocks(InputError):  # noqa: N818  # InputError says that it is an error
    """The blocks cannot be computed one after the other, each from the output of the one before."""


class Stop(Exception):  # noqa: N818  # no error
    """Raised inside a forward to end it early."""


class Results:
    """Results by batch of a block's first products, for repeated forwards; at most `room` bytes.

    A block is pruned group by group, each measured after the groups before it. So every forward
    begins as the one before it, and goes on with weights that have changed since.
    """

    def __init__(self, block: nn.Module, room: int | None = None) -> None:
        self._block = block
        self._room = room
        self._kept: dict[int, list[tuple[Tensor, int] | None]] = {}  # tensors and their versions
        self._needed: dict[str, tuple[int, int]] = {}  # parameters that the results depend on

    def refresh(self) -> None:
        if self._needed.items() - self._states().items():
            self._kept.clear()
            self._needed.clear()

    def depend_on(self, unused: Collection[str]) -> None:
        """Note that the results depend on the parameters as they are, except `unused` ones."""
        self._needed = {name: state for name, state in self._states().items() if name not in unused}

    @contextmanager
    def reading(self, batch: int) -> Iterator[None]:
        """Read a batch's known results inside the context, and keep further ones."""
        with _Reading(self._kept.setdefault(batch, []), self._fits):
            yield
        del self._kept[batch]

    def spending(self, batch: int) -> TorchFunctionMode:
        """Return a context that reads a batch's known results for the last time."""
        return _Reading(self._kept.pop(batch, []), lambda _: False)

    def _states(self) -> dict[str, tuple[int, int]]:
        """Return every parameter's address and version, which each change in place raises."""
        return {name: (each.data_ptr(), each._version) for name, each in self._block.named_parameters()}

    def _fits(self, tensor: Tensor) -> bool:
        kept = sum(result[0].nbytes for results in self._kept.values() for result in results if result is not None)
        return self._room is None or kept + tensor.nbytes <= self._room


class _Reading(TorchFunctionMode):
    """A mode that counts the products of one forward and reads the known ones."""

    def __init__(self, results: list[tuple[Tensor, int] | None], fits: Callable[[Tensor], bool]) -> None:
        super().__init__()
        self._results = results
        self._fits = fits
        self._place = 0

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__name__", "") not in KEPT:
            return func(*args, **(kwargs or {}))
        known = self._results[self._place] if self._place < len(self._results) else None
        self._place += 1
        if known is not None and known[0]._version == known[1]:  # else it was changed in place
            return known[0]
        result = func(*args, **(kwargs or {}))
        if self._place > len(self._results):
            self._results.append((result, result._version) if self._fits(result) else None)
        return result


@dataclass(frozen=True)
class BlockRun:
    """A decoder block in memory, its recorded calls, and its input hidden states by batch.

    `name` is the block's in `model`; forwards run in `context` (autocast). `uses` are the first
    batch's uses of matrices, each with the number of its input tensor, once `groups` was called.
    """

    name: str
    model: PreTrainedModel
    block: nn.Module
    hidden: Activations
    calls: Sequence[Call]
    context: Context
    results: Results
    uses: list[tuple[Matrix, int]] = field(default_factory=list)

    @property
    def index(self) -> int:
        return int(self.name.rpartition(".")[2])

    def forward(self, batch: int, states: Tensor | None = None) -> Tensor:
        """Return the block's output for a batch; `states` replace the recorded hidden states."""
        args, kwargs = self.calls[batch]
        with self.context():
            output = self.block(self.hidden[batch] if states is None else states, *args, **kwargs)
        first: Tensor = output[0] if isinstance(output, tuple | list) else output
        return first

    def outputs(self) -> Iterator[Tensor]:
        self.results.refresh()
        for batch in range(len(self.hidden)):
            with self.results.spending(batch):
                output = self.forward(batch)
            yield output

    def measure(self, matrices: Sequence[Matrix], receive: Receive) -> None:
        """Call `receive(matrix, inputs)` for every multiplication with a matrix, over all batches.

        If the first batch of `groups` used each matrix exactly once, all with one tensor, forwards
        stop there, and begin with the results of the forwards before them.
        """
        uses = [(matrix, number) for matrix, number in self.uses if matrix in matrices]
        if len(uses) == len(matrices) == len(dict(uses)) and len({each for _, each in uses}) == 1:
            self._measure_shared(matrices, receive)
            return
        for batch in range(len(self.hidden)):
            self._measure_batch(batch, matrices, receive)

    def groups(self, matrices: Sequence[Matrix]) -> list[list[Matrix]]:
        """Return the matrices in the order of use, grouped by input tensor."""
        groups: dict[object, list[Matrix]] = {}
        seen: set[Matrix] = set()
        last: list[Any] = [None, 0]  # the latest input tensor, and the number of tensors so far
        self.uses.clear()

        def add(matrix: Matrix, key: object) -> None:
            if matrix not in seen:
                seen.add(matrix)
                groups.setdefault(key if matrix.index is None else matrix.parameter, []).append(matrix)

        def receive(matrix: Matrix, inputs: Tensor) -> None:
            if inputs is not last[0]:
                last[:] = [inputs, last[1] + 1]
            self.uses.append((matrix, last[1]))
            add(matrix, last[1])

        self._measure_batch(0, matrices, receive)
        for matrix in matrices:
            add(matrix, matrix.name)
        return list(groups.values())

    def _measure_shared(self, matrices: Sequence[Matrix], receive: Receive) -> None:
        def receive_all(_: Matrix, inputs: Tensor) -> None:
            for matrix in matrices:
                receive(matrix, inputs)
            raise Stop

        used = [matrix for matrix, _ in self.uses]
        unused = used[min(map(used.index, matrices)) :]
        self.results.refresh()
        for batch in range(len(self.hidden)):
            with suppress(Stop), self.results.reading(batch):
                self._measure_batch(batch, matrices, receive_all)
        self.results.depend_on({each.parameter.removeprefix(f"{self.name}.") for each in unused})

    def _measure_batch(self, batch: int, matrices: Sequence[Matrix], receive: Receive) -> None:
        with capturing(self.model, self.block, matrices, receive):
            self.forward(batch)


class Walk:
    """A model's blocks, the hidden states that go into the next one, and all recorded calls."""

    def __init__(
        self,
        source: BlockSource,
        batches: Batches,
        activations: Activations | None = None,
        context: Context = nullcontext,
    ) -> None:
        self.source = source
        self.batches = batches
        self.hidden = Activations() if activations is None else activations
        self._context = context
        self._blocks = decoder_blocks(source.model)[1]
        self._calls: list[list[Call]] = [[] for _ in self._blocks]
        with torch.no_grad(), evaluating(source.model):
            self._extras = self._further_outputs()
            self._record()
        _check_finite(self.hidden, "the embeddings")

    def __len__(self) -> int:
        return len(self._blocks)

    @contextmanager
    def opened(self, index: int) -> Iterator[BlockRun]:
        model = self.source.model
        with self.source.opened(index) as block, evaluating(model):
            name = f"{self.source.prefix}.{index}"
            results = Results(block, self.hidden.room)
            yield BlockRun(name, model, block, self.hidden, self._calls[index], self._context, results)

    @contextmanager
    def advancing(self, index: int) -> Iterator[BlockRun]:
        """Yield a block to change; its outputs then become the next one's hidden states."""
        with self.opened(index) as run:
            yield run
            if index + 1 < len(self):
                with torch.no_grad():
                    for batch, states in enumerate(run.outputs()):
                        self.hidden[batch] = states
                _check_finite(self.hidden, run.name)

    def logits(self, batch: int, states: Tensor) -> Tensor:
        """Return the logits (B x T x V) of a batch from the last block's outputs `states`."""

        def forward(*args: Any, **kwargs: Any) -> Any:
            return self._as_output(states)

        with replaced_forwards(self._blocks, lambda _: forward), evaluating(self.source.model), self._context():
            logits: Tensor = self._forward(self.batches[batch]).logits
        return logits

    def _forward(self, batch: Int[Tensor, "_ _"]) -> Any:
        return self.source.model(batch.to(self.source.device), use_cache=False)

    def _computed(self, states: Tensor) -> Tensor:
        """Return states in bf16 if a GPU computes in it, so that the sums of blocks stay in it."""
        with self._context():
            is_bf16 = torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda") == torch.bfloat16
        return states.bfloat16() if is_bf16 and states.is_cuda else states

    def _as_output(self, states: Tensor) -> Any:
        return states if self._extras is None else (states, *self._extras)

    def _further_outputs(self) -> Sequence[Any] | None:
        outputs: list[Any] = []

        def stop(_: nn.Module, args: Any, output: Any) -> None:
            outputs.append(output)
            raise Stop

        handle = self._blocks[0].register_forward_hook(stop)
        try:
            with self.source.opened(0), suppress(Stop):
                self._forward(self.batches[0][:1, :PROBE_TOKENS])
        finally:
            handle.remove()
        self._check_regular(bool(outputs))
        return outputs[0][1:] if isinstance(outputs[0], tuple | list) else None

    def _record(self) -> None:
        left: list[Tensor] = []  # the hidden states that the block before returned

        def shadow(index: int) -> Callable[..., Any]:
            def forward(*args: Any, **kwargs: Any) -> Any:
                states: Tensor = args[0] if args else kwargs.pop("hidden_states")
                self._calls[index].append((args[1:], kwargs))
                if index == 0:
                    self.hidden.append(self._computed(states))
                else:
                    self._check_chain(states, left[0], (*args[1:], *kwargs.values()))
                left[:] = [states]
                if index + 1 == len(self._blocks):
                    raise Stop
                return self._as_output(states)

            return forward

        with replaced_forwards(self._blocks, shadow):
            for batch in self.batches:
                with suppress(Stop):
                    self._forward(batch)
        self._check_regular(all(len(calls) == len(self.batches) for calls in self._calls))

    def _check_chain(self, states: Tensor, before: Tensor, others: Sequence[Any]) -> None:
        name = type(self.source.model).__name__
        if states is not before and not torch.equal(states, before):
            raise IrregularBlocks(f"nothing may be computed between two decoder blocks; {name} computes there")
        passed = [extra for extra in self._extras or () if isinstance(extra, Tensor)]
        if any(value is extra for extra in passed for value in others):
            raise IrregularBlocks(f"blocks must pass on hidden states alone, {name}'s pass on more")

    def _check_regular(self, is_regular: bool) -> None:
        if not is_regular:
            name = type(self.source.model).__name__
            raise IrregularBlocks(f"every block must run once in a forward; those of {name} do not")


@contextmanager
def differentiable(parameters: Sequence[Tensor]) -> Iterator[None]:
    frozen = [parameter for parameter in parameters if not parameter.requires_grad]
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Run the model in evaluation mode, its fp16 LayerNorms widened (`widen_norms`)."""
    training = [module for module in model.modules() if module.training]
    config: Any = getattr(model, "config", None)
    halving = getattr(config, "rescale_every", 0)
    model.eval()
    widened = widen_norms(model)
    if halving:
        config.rescale_every = 0
    try:
        yield
    finally:
        if halving:
            config.rescale_every = halving
        for norm in widened:
            norm.half()
        for module in training:
            module.training = True


def _check_finite(hidden: Activations, name: str) -> None:
    if not all(bool(torch.isfinite(states).all()) for states in hidden):
        raise InputError(
            f"hidden states must be finite, those after {name} are not; check the model's weights, or use --dtype fp32"
        )
