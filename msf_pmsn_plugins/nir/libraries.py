"""NIR's own packages: the one place that imports them."""

try:
    import nir
    import nirtorch
except ImportError as error:
    raise ImportError(f"NIR cannot be imported ({error}): pip install 'msf-pmsn-plugins[nir]'") from error

__all__ = ["nir", "nirtorch"]
