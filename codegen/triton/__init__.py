"""Target ``triton``: the file of target ``torch``, with fused kernels."""
