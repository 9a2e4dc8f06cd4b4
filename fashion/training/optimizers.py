"""Build optimisers and learning-rate schedules by name, from torch.optim."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Muon, Optimizer
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    OneCycleLR,
    SequentialLR,
)

from fashion.settings.experiment import Recipe


def make_optimizers(model: nn.Module, recipe: Recipe) -> list[Optimizer]:
    """Return the optimisers of the model's parameters, with the schedule's maximum learning rate.

    On a CUDA GPU their steps can be recorded in a graph.

    "muon" (Jordan, https://kellerjordan.github.io/posts/muon) updates the matrices and filters of
    hidden layers; AdamW updates the first and last layer, biases and norms. Muon's updates are
    scaled to the size of AdamW's (Liu et al., arXiv:2502.16982), so that both use the same rate.
    """
    parameters = list(model.parameters())
    on_gpu = parameters[0].is_cuda
    if recipe.optimizer == "sgd":
        return [
            SGD(
                parameters,
                lr=recipe.lr,
                momentum=recipe.momentum,
                nesterov=recipe.nesterov,
                weight_decay=recipe.weight_decay,
                fused=on_gpu,
            )
        ]
    settings: dict[str, Any] = {
        "lr": recipe.lr,
        "weight_decay": recipe.weight_decay,
        "capturable": on_gpu,
        # One pass over the values instead of ten.
        "fused": parameters[0].is_cpu,
    }
    if recipe.optimizer != "muon":
        constructor = {"adam": Adam, "adamw": AdamW}[recipe.optimizer]
        return [constructor(parameters, **settings)]
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    hidden = [layer.weight for layer in layers[1:-1]]
    matrices = {id(weight) for weight in hidden}
    rest = [p for p in parameters if id(p) not in matrices]
    adamw = AdamW(rest, **settings)
    return [adamw, _muon(hidden, recipe)] if hidden else [adamw]


class BatchedMuon(Muon):
    """torch's Muon, but orthogonalising matrices of one shape at once, on a CPU in float32.

    On a CPU without bfloat16 instructions, torch's takes ten times as long.
    """

    @torch.no_grad()
    def step(  # type: ignore[override]
        self, closure: Callable[[], float] | None = None
    ) -> float | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            of_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    of_shape[p.shape].append(p)
            for shape, matrices in of_shape.items():
                gradients = torch.stack([p.grad for p in matrices if p.grad is not None])
                averages = [self._average(p) for p in matrices]
                for average, gradient in zip(averages, gradients, strict=True):
                    average.lerp_(gradient, 1 - momentum)
                steps = _orthogonalized(gradients.lerp(torch.stack(averages), momentum), group)
                steps *= lr * 0.2 * max(shape) ** 0.5
                for p, step in zip(matrices, steps, strict=True):
                    p.mul_(1 - lr * group["weight_decay"]).sub_(step)
        return loss

    def _average(self, parameter: Tensor) -> Tensor:
        """Return the moving average of the parameter's gradients."""
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        return state["momentum_buffer"]


def _orthogonalized(matrices: Tensor, group: dict[str, Any]) -> Tensor:
    """Set all singular values close to 1, by the Newton-Schulz iteration of torch's Muon.

    Args:
        matrices: float32, shape (N, rows, columns).
        group: has the iteration's settings.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=group["eps"])
    if x.is_cuda:
        x = x.bfloat16()
    a, b, c = group["ns_coefficients"]
    for _ in range(group["ns_steps"]):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)


def _muon(weights: list[Tensor], recipe: Recipe) -> Muon:
    """Return a Muon that sees filters as matrices, with one row per output channel."""
    rows = [nn.Parameter(_rows(weight.detach(), weight)) for weight in weights]
    muon = BatchedMuon(
        rows, lr=recipe.lr, weight_decay=recipe.weight_decay, adjust_lr_fn="match_rms_adamw"
    )

    def take_gradients(*_: Any) -> None:
        for matrix, weight in zip(rows, weights, strict=True):
            matrix.grad = None if weight.grad is None else _rows(weight.grad, weight)

    muon.register_step_pre_hook(take_gradients)
    return muon


def _rows(tensor: Tensor, weight: Tensor) -> Tensor:
    """Return one row per output, with values in the memory order of `weight`."""
    return (tensor if weight.is_contiguous() else tensor.permute(0, 2, 3, 1)).flatten(1)


def make_schedule(optimizer: Optimizer, recipe: Recipe, steps_per_epoch: int) -> LRScheduler:
    """Return the schedule of `recipe`, to be stepped after each optimisation step.

    After a linear warm-up of `recipe.warmup_epochs` the rate is constant or decays to zero along
    half a cosine. "one-cycle" (Smith and Topin, arXiv:1708.07120) uses a cosine warm-up instead,
    and lowers the momentum (beta1 of Adam) from 0.95 to 0.85 while the rate rises; not that of SGD
    without momentum, nor on a CUDA GPU, where steps are recorded with one momentum.
    """
    total = recipe.epochs * steps_per_epoch
    warmup = round(recipe.warmup_epochs * steps_per_epoch)
    if recipe.schedule == "one-cycle":
        has_momentum = recipe.optimizer != "sgd" or recipe.momentum > 0
        on_gpu = optimizer.param_groups[0]["params"][0].is_cuda
        return OneCycleLR(
            optimizer,
            recipe.lr,
            total_steps=total + 1,
            pct_start=warmup / total,
            cycle_momentum=has_momentum and not on_gpu,
        )
    rest: LRScheduler = ConstantLR(optimizer, factor=1, total_iters=0)
    if recipe.schedule == "cosine":
        rest = CosineAnnealingLR(optimizer, T_max=total - warmup)
    if not warmup:
        return rest
    start = LinearLR(optimizer, start_factor=1 / (warmup + 1), total_iters=warmup)
    return SequentialLR(optimizer, [start, rest], milestones=[warmup])
