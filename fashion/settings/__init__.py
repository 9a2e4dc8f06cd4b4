"""What can be set: options, experiments, presets, the task and its metrics. No torch, no MLflow."""
