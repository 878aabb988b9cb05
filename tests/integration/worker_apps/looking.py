"""`two_steps`, whose consumer looks more often whether all comes that there is."""

from two_steps import bill  # noqa: F401

from eventflow import sources

sources._ENDS_EVERY = 1.0  # seconds
