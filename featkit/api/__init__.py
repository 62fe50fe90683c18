"""What the commands do, as functions: `featkit.extract(...)` is `featkit extract`, with the same names and defaults."""
