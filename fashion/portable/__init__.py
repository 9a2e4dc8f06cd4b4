"""Code that is stored with each model: read pictures, and answer them with classes."""
