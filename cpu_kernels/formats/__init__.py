"""One file per weight format of GGUF, the same names in each: the format's description and its two kernels.

multiply     16-row groups times 1, 2, 4, 8 .. columns of activations, on the x16 layout
dequantize   one 16-row group as float32 rows

A quantized format is a tile.Format: value = scale x code - minimum, with scales and minima computed in the order in
which the format's definition rounds them, so that `dequantize` is exact. F32, F16 and BF16 are a floats.FloatFormat.
"""
