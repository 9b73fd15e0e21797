"""Pure decisions of the engine: nouns and rules without clock, input or output, so that they can be tested as tables."""
