"""Who competes: each module is a program of its own that prints one line of JSON at its end."""
