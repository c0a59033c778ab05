"""Frameworks and servers that SocketSpec runs on."""
