"""A VM with cards: its settings, the plan, its resource and what is done for it."""
