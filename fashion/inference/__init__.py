"""Use a trained model: photographs, predictions, exported files."""
