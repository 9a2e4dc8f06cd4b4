"""Fashion-MNIST experiments, tracked and registered with MLflow."""

import os

# PyTorch's OpenMP reads this when torch is imported. By default its threads spin for milliseconds
# after each operation; beside other work they spin on the cores that this very process lacks.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
