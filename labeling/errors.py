"""The one exception that means "a person can mend this"."""


class InputError(ValueError):
    """Something that the user gave is wrong: a config, a file, a function, a server address.

    The message is one line: what is wrong, where, and what to do. The command line prints it
    without a traceback and exits with code 2, and a flow never retries it. Anything else that
    escapes a stage is our own bug or the machine's trouble, and keeps its traceback.
    """
