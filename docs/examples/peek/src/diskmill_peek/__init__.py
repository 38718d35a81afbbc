"""Two commands that show how a disk begins."""
