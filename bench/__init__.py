"""Throughput and memory of ssl_fast against what people use, in one process: `python -m bench`."""
