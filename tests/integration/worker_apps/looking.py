"""`two_steps`, whose consumer looks more often whether all comes that there is."""

from two_steps import bill  # noqa: F401

from eventflow import sources, stalls

sources._ENDS_EVERY = stalls._OPEN = 1.0  # seconds
