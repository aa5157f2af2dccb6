"""Any CPU."""

from llvmlite import ir

from ..lanes import I8, I32, Lanes, vector
from .base import Machine


class Generic(Machine):
    """Any CPU: 16-bit products and shuffles, as LLVM finds best."""

    SIGNED = True
    COLUMNS = (1, 4)

    @classmethod
    def lookup(cls, table, index):
        builder = index.builder
        result, entries = ir.Constant(index.type, ir.Undefined), ir.Constant(vector(I8, 16), list(table))
        for i in range(index.count):
            at = builder.extract_element(index.value, I32(i))
            result = builder.insert_element(result, builder.extract_element(entries, at), I32(i))
        return Lanes(builder, result)

    def start(self, sums):
        return [sums]

    def pin(self, accumulators):
        return list(accumulators)

    def add(self, accumulator, w: Lanes, x: Lanes):
        products = w.widen(I32, signed=self.signed) * x.widen(I32, signed=True)
        for count in (64, 32):
            products = products.pick(range(0, count, 2)) + products.pick(range(1, count, 2))
        return [accumulator[0] + products]

    def total(self, accumulator) -> Lanes:
        return accumulator[0]
