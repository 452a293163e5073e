"""Triton kernels, one file per operation; `launch` holds their configurations and the functions that start them."""
