"""``python -m diskmill_cli``."""

from .main import main

main()
