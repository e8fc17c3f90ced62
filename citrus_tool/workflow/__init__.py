"""One module a verb: data and networks in, hardening, certification or attack, figures out.

Each function reads its inputs first, so that a wrong file or option fails before any work and leaves nothing behind;
each result is a frozen dataclass of citrus_tool.results.
"""
