"""The kernels: texts of Triton, each in a file of one reading.

What a setting chooses is a ``tl.constexpr`` in capitals; a pointer that is None is not there.
"""
