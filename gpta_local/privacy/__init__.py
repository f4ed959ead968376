"""The leak scan: words of private rows, and personal data, in what would go to the assistant.

Nothing here reads rows from files; what must know them is given texts by the outer loop.
"""
