"""The diskmill command line: parses what the user typed, calls the library, prints what it returns."""

__version__ = "0.1.0"
