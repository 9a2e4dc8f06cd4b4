"""The networks, one family per file; `catalogue` maps names to constructors."""
