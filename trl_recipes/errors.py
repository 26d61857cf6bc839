"""The error for what a user can fix, and the way in which a run that is told to stop ends."""


class RecipeError(ValueError):
    """A mistake in a call, a file or a setting: what was wrong, where it came from, what to do.

    A recipe prints it and exits with 2, without a traceback.
    """

    # Whether it is raised in every process of a launch, so that all still can save together.
    everywhere = False


class RunStopped(Exception):
    """A run that was told to stop did so, saved what it had, and says how to go on.

    A recipe exits with `exit_code`: 128 plus the number of the signal, as shells have it.
    """

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code
