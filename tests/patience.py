"""How the tests wait: they look, and look again, for each look costs the cores that all of them share."""


def until_next_look(passed: float) -> float:
    """Seconds until the next look at what was waited for so long: a twentieth of that, between 5 and 100 milliseconds."""
    return min(0.1, 0.005 + passed / 20)
