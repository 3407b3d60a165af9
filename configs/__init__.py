"""Presets: one readable TOML each."""
