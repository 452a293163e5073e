"""Studies: several methods from the same start over several seeds, with intervals, on tasks and on human ratings."""
