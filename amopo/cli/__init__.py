"""The `amopo` command."""
