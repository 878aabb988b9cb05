"""What can go wrong with a local service, said in one sentence."""


class LocalServiceError(Exception):
    """A local service cannot be had; the message says why and what to do."""
