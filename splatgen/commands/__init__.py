"""One module a verb of the command line, each with `main(argv) -> exit code`, and what they share."""
