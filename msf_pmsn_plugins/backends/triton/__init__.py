"""MSF and PMSN as kernels of Triton, for NVIDIA and AMD: compiled on first use, launched on torch's current stream.

``msf`` and ``pmsn`` choose settings and memory, ``config`` the shape of a launch, ``launch`` gives it to the device.
Memory is torch's. Nothing here waits for the device but the first call with new numbers (``arguments.table``), so
later ones can be captured in a CUDA graph.
"""


def unusable() -> str:
    """Why Triton cannot work here, ``""`` if it can: it is imported, and a small kernel compiled and loaded."""
    from . import launch

    try:
        launch.probe()
    except RuntimeError as error:
        return str(error)
    return ""
