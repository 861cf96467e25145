"""What a run leaves behind: its events, the file that holds them, stored answers, and what is read from them.

Nothing is imported here, so that a command which reads a result file loads no PyTorch.
"""
