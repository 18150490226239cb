"""Records on disk that the store has not got yet."""
