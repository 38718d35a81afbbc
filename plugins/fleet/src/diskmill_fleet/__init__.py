"""``diskmill batch``: jobs on thousands of images.

A manifest has a job a line (:mod:`.manifest`; :mod:`.planning` writes one), a journal a line for each job that was done
or failed (:mod:`.journal`). :mod:`.schedule` says what may begin next, :mod:`.processes` and :mod:`.cluster` are where
jobs run, :mod:`.work` is what one does there, and :mod:`.running` leads them all.
"""
