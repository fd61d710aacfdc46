"""The subcommands of `zoo`, one module for each kind; `zoo.__main__` puts them together."""
