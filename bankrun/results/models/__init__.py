"""One file for each kind of result: its dataclasses, and how they are read back and checked.

``store.KINDS`` names them, and imports the one that a file needs.
"""
