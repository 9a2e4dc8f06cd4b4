"""The networks, one family a file; `catalogue` names them."""
