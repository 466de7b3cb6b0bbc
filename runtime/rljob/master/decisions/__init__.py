"""Pure decisions of the master: values in, values out. Nothing here reads a clock, a file, a socket or a random source it was not given."""
