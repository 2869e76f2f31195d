"""Plain torch, for any device."""


def unusable() -> str:
    """Why this backend cannot work here: it always does."""
    return ""
