"""What the commands share: options, their types, how errors and interruptions are shown."""
