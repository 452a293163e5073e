"""What a run has changed, for people to read."""
