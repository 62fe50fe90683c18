"""A localizer over HTTP. Needs the extra `serve`: nothing but `featkit serve` imports this room."""
