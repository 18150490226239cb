"""Files of a new method, encoder, fusion or data set, written from templates that run as they are."""
