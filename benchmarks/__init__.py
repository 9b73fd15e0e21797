"""Benchmarks: real processes, embedded Postgres with fsync on, signatures on. `make bench`; see docs/operations/performance.md."""
