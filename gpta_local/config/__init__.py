"""The configuration: sections, YAML, messages."""
