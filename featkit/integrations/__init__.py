"""featkit inside other people's programs: each module knows one of them, imports it only when asked to."""
