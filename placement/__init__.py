"""The placement planner: what fits where, and how fast it will be. Pure arithmetic on the standard library, no I/O."""
