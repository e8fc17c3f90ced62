"""What may happen to an input: the threat, and the boxes of inputs that it spans. Importing it leaves torch alone."""

from citrus_tool.threat.box import Box as Box
from citrus_tool.threat.threat import Threat as Threat
from citrus_tool.threat.threat import parse_eps as parse_eps
from citrus_tool.threat.threat import spelled as spelled
