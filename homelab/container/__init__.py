"""A container with cards: its settings, the plan, its resources and what is done for them."""
