"""With `pytest --large` every process of a test imports this first: all but the tiniest values are large."""

from cwmp import defaults

defaults.INLINE_MAX = 32
