"""The conformance suites: tests that hold for every driver of a kind."""
