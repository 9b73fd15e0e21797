"""The engine of Durable: it owns all state and all clocks, and calls apps over signed HTTP. It never runs user code."""

__version__ = "0.1.0"
