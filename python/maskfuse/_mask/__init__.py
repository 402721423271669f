"""What `Mask` is made of: its bits, what is found in them, patterns to make one from, and plans for kernels."""
