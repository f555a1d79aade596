"""A function that a slot has loaded, and whether that copy may serve another job."""

from __future__ import annotations

from typing import Any, Callable, Optional

from . import defaults
from .captures import Captures
from .functions import Function, load_function
from .packing import Fetch
from .references import Classes, at_hand


class Loaded:
    """One function of a client's, in a slot."""

    def __init__(self, function: Function, fetch: Optional[Fetch] = None) -> None:
        self.function = function
        self._fetch = fetch  # gets what is too large to be in its bytes
        self._target: Optional[Callable[..., Any]] = None
        self._classes: Classes = {}
        self._captures: Optional[Captures] = None  # None: nothing has to be looked at
        self._changes = 0  # in a row
        self._loads = 0

    def target(self) -> Callable[..., Any]:
        """The function to call, loaded anew if the last job may have changed it; its classes are `at_hand`.

        Raises what its loading raises.
        """
        if self._target is not None:
            if self._captures is None or self._captures.unchanged():
                self._changes = 0
                at_hand.classes = self._classes
                return self._target
            self._changes += 1
        return self._load()

    def _load(self) -> Callable[..., Any]:
        self._target = self._captures = None
        self._loads += 1
        at_hand.classes = {}
        target, at_hand.classes = load_function(self.function, self._fetch)
        if self.function.reusable:
            self._target = target
        elif self.function.checkable and self._seems_worth_a_check():
            self._captures = Captures.of(target, *at_hand.classes.values())
            if self._captures is not None:
                self._target = target
                self._classes = at_hand.classes
        return target

    def _seems_worth_a_check(self) -> bool:
        """Whether jobs have left the function as it was; where they did not, look again now and then."""
        return self._changes < defaults.REPEATED_CHANGES or self._loads % defaults.LOADS_A_CHECK == 0
