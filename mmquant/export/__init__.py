"""Deployment: exported graphs, their execution in integers, and the comparison of runtimes with it."""
