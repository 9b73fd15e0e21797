"""The one way in which a benchmark stops: with a sentence for the person who started it."""


class BenchFailed(Exception):
    """The measurement can not go on; the message says why. Whoever reads it mends that and measures again."""
