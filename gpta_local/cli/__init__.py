"""The command line. Everything heavy is imported inside a command."""
