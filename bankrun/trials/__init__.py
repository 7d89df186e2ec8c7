"""Any program on trial: every interleaving of two must end like one after the other.

    programs     what is put on trial          participant   what runs in the user's interpreter
    scratch      the database it runs on       trial         serial orders, every interleaving, the verdict
    judge        what an execution was worth   yardstick     how outcomes are compared, matching: one bijection

It knows nothing of a bank: the engine (`bankrun.schedule`) orders the steps.
"""
