"""The error of this package; hetero maps it onto its own tree."""


class GpuError(RuntimeError):
    """GPU, driver or kernel refused: `found` what is the case, `limit` what would do, `remedy` what to try."""

    def __init__(self, found: str, limit: str = "", remedy: str = ""):
        self.found, self.limit, self.remedy = found, limit, remedy
        super().__init__("; ".join(part for part in (found, limit, remedy) if part))
