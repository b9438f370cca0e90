"""The documents, and what makes their tables."""
