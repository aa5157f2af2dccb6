"""The placement planner: pure arithmetic on the standard library. Not built yet: everything is computed on the CPU."""
