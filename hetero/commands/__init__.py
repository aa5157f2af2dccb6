"""The verbs of `hetero`: a file for each, with its options and what it calls.

    cli.py -> verb.py (a function and its groups of flags become a command) -> chat.py, generate.py ...

Only typer and the standard library are imported with these: `hetero --help` must not wait for torch, numba or numpy.
"""
