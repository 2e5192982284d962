"""Reading and checking recipes; the ready ones are in `zoo/`."""
