"""Replay a function's work on a CUDA GPU from a recording of it.

A small network's kernels are done sooner than Python can launch the next ones. CUDA launches a
recorded graph of them at once: https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

# Calls before the one that is recorded: in these, libraries choose their algorithms and allocate
# memory, which a recording cannot do.
WARM_UP = 3


@dataclass(frozen=True)
class _Recording:
    graph: torch.cuda.CUDAGraph
    inputs: Sequence[Tensor]
    output: Tensor
    gradients: Sequence[Tensor | None]

    def replay(self, parameters: Sequence[nn.Parameter], inputs: Sequence[Tensor]) -> Tensor:
        for ours, given in zip(self.inputs, inputs, strict=True):
            ours.copy_(given)
        self.graph.replay()
        for parameter, gradient in zip(parameters, self.gradients, strict=True):
            parameter.grad = gradient
        return self.output.clone()


class Replayed:
    """Computes gradients with `function`, from a recording once it has been called often enough.

    It is recorded once for each shape of the inputs and set of trainable parameters. Everything
    else that it depends on must stay in place in the GPU's memory.

    Args:
        function: computes a tensor from tensors, and the gradients of `parameters`, which must have
            none before.
        parameters: those of the model.
        generator: draws random numbers in `function`, on the GPU.
    """

    def __init__(
        self,
        function: Callable[..., Tensor],
        parameters: Sequence[nn.Parameter],
        generator: Generator,
    ) -> None:
        self.function, self.parameters, self.generator = function, parameters, generator
        self.stream = torch.cuda.Stream()
        self.calls: dict[object, int] = {}
        self.recordings: dict[object, _Recording] = {}

    def __call__(self, *inputs: Tensor) -> Tensor:
        kind = (
            *(each.shape for each in inputs),
            *(parameter.requires_grad for parameter in self.parameters),
        )
        if kind in self.recordings:
            return self.recordings[kind].replay(self.parameters, inputs)
        self.calls[kind] = self.calls.get(kind, 0) + 1
        if self.calls[kind] > WARM_UP:
            self.recordings[kind] = self._record(inputs)
            return self.recordings[kind].replay(self.parameters, inputs)
        # On a stream of its own, as the recording will be.
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            output = self.function(*inputs)
        torch.cuda.current_stream().wait_stream(self.stream)
        return output

    def _record(self, inputs: Sequence[Tensor]) -> _Recording:
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self.generator)
        held = [each.clone() for each in inputs]
        with torch.cuda.graph(graph, stream=self.stream):
            output = self.function(*held)
        return _Recording(graph, held, output, [parameter.grad for parameter in self.parameters])
