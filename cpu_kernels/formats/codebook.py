"""What the codebook formats IQ1, IQ2 and IQ3 have in common.

A codebook's entry is 8 (IQ3: 4) values; a block holds indices into it. Entries of IQ2 and IQ3 are magnitudes, whose
signs the block holds as bits. Where the CPU can look up bytes in registers (codebook_registers.py), `codes` does so
as it is called; elsewhere the whole block is decoded into scratch memory first (codebook_memory.py).
"""

from typing import Any, ClassVar

import gguf
import numpy as np

from ..lanes import Lanes
from ..machine import MACHINE
from ..tile import Format
from . import codebook_memory, codebook_registers
from .codebook_fields import Words

_DECODING: Any = codebook_registers if codebook_registers.POSSIBLE else codebook_memory


def codebook(type: str, factor: int = 1) -> np.ndarray:
    """int64 [entries, 8 or 4]: the values of a format of the gguf package, `factor` times."""
    quant = getattr(gguf.quants, type)
    quant.init_grid()
    return (quant.grid.reshape(quant.grid_shape) * factor).astype(np.int64)


class Codebook(Format):
    """Codes are OFFSET plus or minus a magnitude; scale = d x (2 s + 1) x UNIT."""

    VALUES, BITS, OFFSET = 256, 7, 64
    GRID: ClassVar[np.ndarray]  # int64 [entries, 8 or 4], magnitudes (IQ1: values)
    UNIT: ClassVar[float]

    def decode(self):
        self.fields = Words(self._words, self.place)
        self.d = self.unit_scale()
        self.decoder = _DECODING.Decoder(self)

    def unit_scale(self) -> Lanes:
        return self.half().real_from_f16() * self.UNIT

    def codes(self, block, word):
        return self.decoder.codes(block, word)

    def ready(self):
        return self.decoder.ready()

    def odd_scale(self, s: Lanes) -> Lanes:
        return ((s << 1) + 1).real() * self.d

    @classmethod
    def indices(cls, words: Words, block: Any, part: int) -> tuple[Lanes, Lanes | None]:
        """Lower and upper bits of four indices for each row, as 64 bytes; `part`: 0, or with entries of 4 also 1."""
        raise NotImplementedError

    @classmethod
    def signs(cls, words: Words, block: Any) -> Lanes:
        """Four bytes for each row, whose bits are set for negative values."""
        raise NotImplementedError

    @classmethod
    def signed(cls, entries: Lanes, signs: Lanes, word: int) -> Lanes:
        """Entries (OFFSET + magnitude) of 4 values for each row, and their signs -> codes."""
        flipped = entries.constant(2 * cls.OFFSET) - entries
        return Lanes(
            entries.builder, entries.builder.select(_DECODING.negative(signs, word), flipped.value, entries.value)
        )


def even(sevens: Lanes) -> Lanes:
    """Seven bits in each byte -> eight, of which an even number is set."""
    if codebook_registers.POSSIBLE:
        return codebook_registers.even(sevens)
    odd = [0x80 * (bin(i).count("1") % 2) for i in range(16)]
    return sevens ^ MACHINE.lookup(odd, sevens & 15) ^ MACHINE.lookup(odd, (sevens >> 4) & 15)
