"""`python -m eventflow` is the command `eventflow`."""

from eventflow.cli import main

if __name__ == "__main__":
    main()
