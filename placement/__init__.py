"""The placement planner: pure arithmetic on the standard library. Not built yet; `hetero.load` puts everything on the CPU."""
