"""A VM with cards: its settings, the plan, its refusals, its resource and what is done for it."""
