"""Find, verify and split the dataset."""
