"""The kernels' self-test: each op on a small random problem against the reference, and a record of what passed."""
