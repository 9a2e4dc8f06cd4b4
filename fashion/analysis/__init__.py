"""Tables, figures and texts made of a model's answers."""
