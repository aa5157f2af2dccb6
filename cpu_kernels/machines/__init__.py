"""Products of bytes as each family of CPUs does them: base.py says what an emitter can ask of each."""
