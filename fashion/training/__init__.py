"""Train and evaluate a model. Knows nothing of MLflow."""
