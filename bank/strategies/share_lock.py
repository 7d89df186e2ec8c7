"""A lock that all readers share, taken by a transfer that means to write."""

from bank.strategies.base import Claim, Strategy


class ShareLock(Strategy):
    """``SELECT … FOR SHARE`` on both accounts, in id order, and then the UPDATEs.

    Claims everywhere, and keeps the money: no transaction can change a row while another holds it ``FOR SHARE``
    (manual, section 13.3.2), so what was read is still there when it is written. But all who meet hold the lock, and
    each one's UPDATE waits for the others: that is a deadlock every time, not only sometimes, and the order of the ids
    cannot help (section 13.3.4). All but one are ended with 40P01 and run again. Right by its failures alone: a
    transfer that reads in order to write needs the writer's lock from the start.
    """

    name = "share-lock"
    summary = "FOR SHARE, then UPDATE: it deadlocks"
    claim = Claim.EVERYWHERE

    READ = """
        SELECT id, balance, last_entry, version, clock_timestamp() FROM accounts
        WHERE id IN (%(debit)s, %(credit)s) ORDER BY id FOR SHARE
    """
