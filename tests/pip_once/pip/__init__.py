"""First on the engine's PYTHONPATH in tests: see __main__.py."""
