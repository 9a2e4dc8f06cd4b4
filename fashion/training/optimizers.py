"""Build optimisers and learning-rate schedules by name, from torch.optim."""

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

    "muon" (Jordan, https://kellerjordan.github.io/posts/muon) updates the matrices and filters of
    hidden layers; AdamW updates the first and last layer, biases and norms. Muon's updates are
    scaled to the size of AdamW's (Liu et al., arXiv:2502.16982), so that both use the same rate.
    """
    parameters = list(model.parameters())
    if recipe.optimizer == "sgd":
        return [
            SGD(
                parameters,
                lr=recipe.lr,
                momentum=recipe.momentum,
                nesterov=recipe.nesterov,
                weight_decay=recipe.weight_decay,
            )
        ]
    if recipe.optimizer != "muon":
        constructor = {"adam": Adam, "adamw": AdamW}[recipe.optimizer]
        return [constructor(parameters, lr=recipe.lr, weight_decay=recipe.weight_decay)]
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    hidden = [layer.weight for layer in layers[1:-1]]
    matrices = {id(weight) for weight in hidden}
    rest = [p for p in parameters if id(p) not in matrices]
    adamw = AdamW(rest, lr=recipe.lr, weight_decay=recipe.weight_decay)
    return [adamw, _muon(hidden, recipe)] if hidden else [adamw]


class Float32Muon(Muon):
    """torch's Muon, but orthogonalising in the parameters' precision instead of bfloat16.

    On a CPU without bfloat16 instructions this takes a tenth of the time.
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
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(p)
                average = state["momentum_buffer"]
                average.lerp_(p.grad, 1 - momentum)
                direction = _orthogonalized(p.grad.lerp(average, momentum), group)
                p.mul_(1 - lr * group["weight_decay"])
                p.add_(direction, alpha=-lr * 0.2 * max(p.shape) ** 0.5)
        return loss


def _orthogonalized(matrix: Tensor, group: dict[str, Any]) -> Tensor:
    """Set all singular values close to 1, by the Newton-Schulz iteration of torch's Muon."""
    tall = len(matrix) > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / x.norm().clamp(min=group["eps"])
    a, b, c = group["ns_coefficients"]
    for _ in range(group["ns_steps"]):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


def _muon(weights: list[Tensor], recipe: Recipe) -> Muon:
    """Return a Muon that sees filters as matrices, with one row per output channel."""
    rows = [nn.Parameter(_rows(weight.detach(), weight)) for weight in weights]
    muon = Float32Muon(
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
    half a cosine. "one-cycle" (Smith and Topin, arXiv:1708.07120) uses a cosine warm-up instead.
    """
    total = recipe.epochs * steps_per_epoch
    warmup = round(recipe.warmup_epochs * steps_per_epoch)
    if recipe.schedule == "one-cycle":
        return OneCycleLR(optimizer, recipe.lr, total_steps=total + 1, pct_start=warmup / total)
    rest: LRScheduler = ConstantLR(optimizer, factor=1, total_iters=0)
    if recipe.schedule == "cosine":
        rest = CosineAnnealingLR(optimizer, T_max=total - warmup)
    if not warmup:
        return rest
    start = LinearLR(optimizer, start_factor=1 / (warmup + 1), total_iters=warmup)
    return SequentialLR(optimizer, [start, rest], milestones=[warmup])
