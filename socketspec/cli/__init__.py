"""The command line: the outermost layer. It may import anything; nothing imports it."""
