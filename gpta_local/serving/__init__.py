"""A small HTTP server for the product, on this machine alone."""
