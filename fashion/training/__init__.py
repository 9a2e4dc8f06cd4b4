"""Train and evaluate models, independently of MLflow."""
