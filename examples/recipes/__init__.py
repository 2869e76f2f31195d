"""What the recipes are made of: data, networks, neurons and the Lightning module that trains them."""


class RecipeError(RuntimeError):
    """A run that cannot start, or go on, as it was asked for; the message says what to do."""
