"""What a child process does to itself before it looks at anything foreign.

Part of every generated tree: Python 3.9 syntax, the standard library and nothing else. The service
reads the same modules to say what is wanted of a child.
"""
