"""Shared code of the commands: options and their types, error messages, exit codes."""
