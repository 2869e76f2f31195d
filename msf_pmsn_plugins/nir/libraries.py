"""NIR's own packages: the one place that imports them."""

from ..words import install

try:
    import nir
    import nirtorch
except ImportError as error:
    raise ImportError(f"NIR cannot be imported ({error}): {install('nir')}") from error

__all__ = ["nir", "nirtorch"]
