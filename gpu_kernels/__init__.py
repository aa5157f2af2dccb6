"""GPU kernels in Triton, each beside its plain-torch twin; the same verbs as `cpu_kernels`. None exist yet."""
