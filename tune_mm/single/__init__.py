"""One run, without Ray: trained, tracked and shown."""
