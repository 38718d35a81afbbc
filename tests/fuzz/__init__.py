"""A fuzzer with coverage feedback, for what every driver makes of images from strangers.

`python3 dev.py fuzz [DRIVER] [SECONDS]` runs it; `tests/faults/test_fuzz_corpus.py` replays what it has kept.
"""
