"""The fused path in the trainers and loops that people have. One module or folder per host, loaded when asked for."""
