"""Target ``torch``: plain PyTorch."""
