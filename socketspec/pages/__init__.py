"""The app's HTTP pages: docs, health, debug feed, drain."""
