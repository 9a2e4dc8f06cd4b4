"""Options, experiments, presets, queries, the task and its metrics. No torch, no MLflow."""
