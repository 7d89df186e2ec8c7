"""The errors of those rooms that know no bank: the embedded servers, results as files, the engine, trials.

``bank.errors`` has the bank's own. The command line treats both alike: ``CannotStart`` is exit code 2, every other
error exit code 1.
"""

from __future__ import annotations


class BankrunError(Exception):
    """Something failed while it ran; the message is one sentence."""


class CannotStart(BankrunError):
    """Nothing was started: wrong usage, or a server or a file that will not do."""
