"""Memory of a training step: planned on paper and simulated without a device.

`plan` computes it from a model's shape, `simulate` runs the real model code on tensors without storage. Formulas and
their sources: docs/memory.md.
"""
