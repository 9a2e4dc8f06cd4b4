"""Click commands, one module per entry point of MLproject."""
