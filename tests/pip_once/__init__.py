"""First on the engine's PYTHONPATH in tests: what `pip list` says is kept (pip/__main__.py)."""
