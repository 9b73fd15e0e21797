"""Who runs what: the services of the engine, each a function in an explicit Trio nursery."""
