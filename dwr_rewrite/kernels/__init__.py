"""Our own depthwise kernels, in Triton. Importing this package loads neither torch nor Triton."""
