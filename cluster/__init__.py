"""The Redis/Valkey backend. Not built yet: see the changelog."""
