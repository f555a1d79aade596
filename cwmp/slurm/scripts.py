"""The batch scripts, and how sbatch is called for them: texts that depend on nothing but the options."""

from __future__ import annotations
