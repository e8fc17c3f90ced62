"""Every result of citrus: its dataclass, its writer and its reader in one place."""
