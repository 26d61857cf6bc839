"""The one error class for what a user can mend."""


class RecipeError(ValueError):
    """A mistake in a call, a file or a setting, told so that a person can act on it.

    The message says what was wrong (with the value), where it came from (flag, file and row,
    function) and what to do. A recipe prints it and exits with 2, without a traceback.
    """
