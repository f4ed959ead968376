"""The only room that opens private rows."""
