"""Fashion-MNIST experiments, tracked and registered with MLflow."""
