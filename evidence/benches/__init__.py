"""The benchmarks, one file each; `paring bench NAME` runs them."""
