"""Replay optimisation steps on a CUDA GPU from a recording of one.

A small network's kernels are done sooner than Python can launch the next ones. CUDA launches a
recorded graph of them at once: https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn
from torch.optim import Optimizer

# Steps before the one that is recorded: in these, libraries choose their algorithms and optimisers
# allocate their state, which a recording cannot do.
WARM_UP = 3


@dataclass(frozen=True)
class _Recording:
    graph: torch.cuda.CUDAGraph
    inputs: Sequence[Tensor]
    output: Tensor

    def replay(self, inputs: Sequence[Tensor]) -> Tensor:
        for ours, given in zip(self.inputs, inputs, strict=True):
            ours.copy_(given)
        self.graph.replay()
        return self.output.clone()


class Replayed:
    """Calls `step`, and replays a recording of it once it has been called often enough.

    It is recorded for each shape of the inputs and set of trainable parameters. Learning rates may
    change between calls; everything else that it depends on must stay in place on the GPU.

    Args:
        step: computes a tensor from tensors, and changes the parameters, which have no gradients
            before and after.
        parameters: those of the model.
        optimizers: those that `step` uses.
        generator: draws random numbers in `step`, on the GPU.
    """

    def __init__(
        self,
        step: Callable[..., Tensor],
        parameters: Sequence[nn.Parameter],
        optimizers: Sequence[Optimizer],
        generator: Generator,
    ) -> None:
        self.step, self.parameters, self.optimizers = step, parameters, optimizers
        self.generator = generator
        self.rates = [torch.zeros((), device=generator.device) for _ in self._groups()]
        self.stream = torch.cuda.Stream()
        self.calls: dict[object, int] = {}
        self.recordings: dict[object, _Recording] = {}

    def __call__(self, *inputs: Tensor) -> Tensor:
        for rate, group in zip(self.rates, self._groups(), strict=True):
            rate.fill_(group["lr"])
        kind = (
            *(each.shape for each in inputs),
            *(parameter.requires_grad for parameter in self.parameters),
        )
        self.calls[kind] = self.calls.get(kind, 0) + 1
        if self.calls[kind] <= WARM_UP:
            return self._call(inputs)
        if kind not in self.recordings:
            self.recordings[kind] = self._record(inputs)
        return self.recordings[kind].replay(inputs)

    def _call(self, inputs: Sequence[Tensor]) -> Tensor:
        # On a stream of its own, as the recording will be.
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream), self._rates_on_device(), warnings.catch_warnings():
            # That an optimiser which can be recorded is not.
            warnings.filterwarnings("ignore", "This instance was constructed with capturable=True")
            output = self.step(*inputs)
        torch.cuda.current_stream().wait_stream(self.stream)
        return output

    def _record(self, inputs: Sequence[Tensor]) -> _Recording:
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self.generator)
        held = [each.clone() for each in inputs]
        with self._rates_on_device(), torch.cuda.graph(graph, stream=self.stream):
            output = self.step(*held)
        return _Recording(graph, held, output)

    def _groups(self) -> list[dict]:
        # Not kept, because an optimiser that loads its state has new ones.
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    @contextmanager
    def _rates_on_device(self) -> Iterator[None]:
        """Let the optimisers read their learning rates from the GPU, as replays do."""
        groups = self._groups()
        numbers = [group["lr"] for group in groups]
        for group, rate in zip(groups, self.rates, strict=True):
            group["lr"] = rate
        try:
            yield
        finally:
            for group, number in zip(groups, numbers, strict=True):
                group["lr"] = number
