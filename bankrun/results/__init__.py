"""What was found, as it is saved: a type for each kind of result, one provenance, one reader and one writer.

``docs/results.md`` is the contract of the files. Nothing is imported here: ``store`` and ``provenance`` know no bank.
"""
