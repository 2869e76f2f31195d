"""Two published spiking neurons, MSF and PMSN, for SpikingJelly and snnTorch."""

__version__ = "0.1.0"
