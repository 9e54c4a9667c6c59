"""Orders over HTTP, for readers."""
