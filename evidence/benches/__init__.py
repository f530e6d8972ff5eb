"""The benchmarks, one file each; `python -m evidence bench NAME` runs them."""
