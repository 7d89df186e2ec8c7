"""How an execution ended, and whether that is how some serial order ends. Nothing here runs anything."""
