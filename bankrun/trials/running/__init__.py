"""Programs, the database that they run on, and the serial orders: what is run, and how its outcome is read."""
