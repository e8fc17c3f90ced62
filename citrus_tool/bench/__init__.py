"""The paper's tables as commands: contests, runs, one journal of what was measured, and the page made from it."""
