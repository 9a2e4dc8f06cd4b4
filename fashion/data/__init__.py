"""The dataset: found, verified, split."""
