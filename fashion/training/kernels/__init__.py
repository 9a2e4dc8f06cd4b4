"""The code that computes the lab's models on a CPU; `choose` is the one door to it."""
