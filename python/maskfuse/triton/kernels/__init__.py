"""The kernels: pointers, sizes and strides, no tensors."""
