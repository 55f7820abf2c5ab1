"""Who may do what to a registry, as lists for people and programs."""

from __future__ import annotations

from daskinfer.spec.section import Section


class RoleRow(Section):
    """What somebody does with a registry, and which of its objects they may write; everyone may read all."""

    name: str
    """publisher, releaser, runner or collector."""
    purpose: str
    """In a few words."""
    create: tuple[str, ...]
    """Created once, never changed: paths in the registry, `*` for anything."""
    replace: tuple[str, ...]
    """Also overwritten."""
    delete: tuple[str, ...]
    """Deleted."""
