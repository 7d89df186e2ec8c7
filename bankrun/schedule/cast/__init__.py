"""Who takes part: what each is, the processes they run in, and what they tell the scheduler."""
