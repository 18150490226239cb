"""Cluster files: read, and checked for what would cost a search, data or money."""
