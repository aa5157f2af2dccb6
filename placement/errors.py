"""What placement refuses. Like the runtime's errors, each says what was found, what the limit is, and the remedy."""


class PlacementError(Exception):
    """`found` what is the case, `limit` what would be allowed, `remedy` what to do about it; one line each."""

    def __init__(self, found: str, limit: str = "", remedy: str = ""):
        self.found, self.limit, self.remedy = found, limit, remedy
        super().__init__("; ".join(part for part in (found, limit, remedy) if part))


class InvalidDocument(PlacementError):
    """A value, or a JSON document, that is not what it should be."""


class DoesNotFit(PlacementError):
    """The model does not fit the machine with these settings; `remedy` names the nearest that do."""
