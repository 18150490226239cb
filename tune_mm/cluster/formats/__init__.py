"""Cluster files of each kind, read as the nodes that they describe."""
