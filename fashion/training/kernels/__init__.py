"""Kernels for the lab's models on a CPU; other packages use only `choose` and `compile`."""
