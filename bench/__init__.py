"""The benchmark: diskmill against qemu-img, whole processes, the same work on the same images in the same run.

`python3 dev.py bench` runs all of it, `--help` lists the choices; works.py says what is run.
"""
