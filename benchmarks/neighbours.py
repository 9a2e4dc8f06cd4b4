"""Time training beside busy processes, on cores that it has to share with them.

    uv run python -m benchmarks --only neighbours

Each contender has one process, which trains when it is told to, so that imports and first calls are
not timed.
"""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from benchmarks.contenders import CONTENDERS, EPOCHS, SEED, by_fashion, by_lightning, environment
from benchmarks.timing import table
from benchmarks.training import MODELS, environment_with_lightning
from fashion.data.dataset import Dataset, Subset
from fashion.data.sources import load_dataset

# The most busy processes beside the training.
MOST = 3
LOOPS = {
    "fashion": CONTENDERS["fashion"],
    "fashion, kernels=torch": partial(by_fashion, kernels="torch"),
    "lab": CONTENDERS["lab"],
    "lightning": partial(by_lightning, tracked=False),
}
# Training images for each loop, of `cnn` and of the linear models: so many that three epochs take
# about a second, many time slices, and so few that every contender's turn comes often.
IMAGES = {
    "fashion": (6400, 60000),
    "fashion, kernels=torch": (1600, 20000),
    "lab": (800, 1600),
    "lightning": (800, 1600),
}


def neighbours(repetitions: int) -> tuple[str, dict]:
    """Time all contenders in turn beside 0 to 3 busy processes."""
    seconds: dict[str, list[list[float]]] = {}
    loads: list[float] = []
    with ExitStack() as stack:
        python = stack.enter_context(environment_with_lightning())
        trainers = {
            f"{model}: {loop}": stack.enter_context(
                _process(
                    python if loop == "lightning" else sys.executable,
                    *("-m", "benchmarks.neighbours", loop, model),
                    env=environment(loop),
                )
            )
            for model in MODELS
            for loop in LOOPS
        }
        for trainer in trainers.values():
            _train(trainer)  # once to warm up
        for repetition in range(repetitions):
            loads.append(os.getloadavg()[0])
            for busy in range(MOST + 1):
                with ExitStack() as beside:
                    for _ in range(busy):
                        beside.enter_context(_process(sys.executable, "-c", "while True: pass"))
                    time.sleep(0.2)  # until they are busy
                    for name, trainer in trainers.items():
                        taken = seconds.setdefault(name, [[] for _ in range(MOST + 1)])
                        taken[busy].append(_train(trainer))
                print(f"repetition {repetition + 1}: {busy} busy", file=sys.stderr, flush=True)
    rows: list[list[object]] = []
    for name, taken in seconds.items():
        quiet, *others = map(statistics.median, taken)
        thousands = EPOCHS * _images(*reversed(name.split(": "))) / 1000
        slower = (f"{other / quiet:.2f}" for other in others)
        rows.append([name, f"{quiet / thousands * 1000:.1f}", *slower])
    header = [
        f"medians of {repetitions}; load before {', '.join(f'{load:.1f}' for load in loads)}",
        "quiet, ms for 1,000 images",
        *(f"times that beside {busy}" for busy in range(1, MOST + 1)),
    ]
    return table(header, rows), {"seconds": seconds, "loads": loads}


@contextmanager
def _process(*command: str, env: dict[str, str] | None = None) -> Iterator[subprocess.Popen[str]]:
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=env) as process:
        try:
            yield process
        finally:
            process.kill()


def _train(trainer: subprocess.Popen[str]) -> float:
    assert trainer.stdin
    assert trainer.stdout
    print("train", file=trainer.stdin, flush=True)
    return float(trainer.stdout.readline())


def _images(loop: str, model: str) -> int:
    return IMAGES[loop][0 if model == "cnn" else 1]


def _head(subset: Subset, count: int) -> Subset:
    return Subset(subset.name, subset.images[:count], subset.labels[:count], subset.digest)


def main(loop: str, model: str) -> None:
    """Train once for each line of input; print the seconds of each training."""
    whole, images = load_dataset(), _images(loop, model)
    dataset = Dataset(_head(whole.train, images), _head(whole.test, images // 6), whole.directory)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a loop prints is no answer
    for _ in sys.stdin:
        start = time.perf_counter()
        LOOPS[loop](model, dataset, SEED)
        print(time.perf_counter() - start, file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
