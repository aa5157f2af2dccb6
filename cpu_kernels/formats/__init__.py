"""One file per weight format of GGUF, the same names in each.

VALUES, BYTES   a block's size in values and in bytes
dot             some rows times one column, on the untouched bytes
unpack          one row as a panel row (see panel.py)
FLOAT           the format multiplies f32 activations; else 8-bit ones
MINIMUM         value = scale x code - minimum, else scale x code

Shared conventions: codes are signed bytes, scales and minima f32 for each 16 values, computed in the order in which the
format's definition rounds them, so that scale x code - minimum is the exact dequantized value.
"""
