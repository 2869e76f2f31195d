"""MSF and PMSN as CUDA kernels: compiled by CuPy on first use, launched on torch's current stream.

``msf`` and ``pmsn`` choose macros, geometry and memory; ``compile`` makes a kernel's text, ``launch`` gives it to the
device. Memory is torch's. Nothing here waits for the device, so after a first call with the same settings everything
can be captured in a CUDA graph.
"""


def unusable() -> str:
    """Why CuPy cannot work here, ``""`` if it can: it is imported, and a small kernel compiled."""
    from . import launch

    try:
        launch.device.probe()
    except (ImportError, RuntimeError) as error:
        return str(error)
    return ""
