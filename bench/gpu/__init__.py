"""What a GPU can show, for bench/gpu_report.sh: `python -m bench.gpu` runs all of it.

stages.py runs one stage after the other and imports nothing but the standard library, so that it outlives whatever a
stage does: each is a process of its own, whose results are appended to a file as they come (journal.py).
"""
