"""citrus: certified training and certification against universal adversarial perturbations.

The public API is listed here and loaded on first use, so that `import citrus_tool` is instant.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from citrus_tool.data import Dataset as Dataset
    from citrus_tool.data import load as load_data
    from citrus_tool.errors import CitrusError as CitrusError
    from citrus_tool.network import Network as Network
    from citrus_tool.threat import Threat as Threat
