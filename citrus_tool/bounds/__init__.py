"""Sound bounds on a network over boxes: intervals (IBP), backward linear bounds (CROWN), rounding margins."""
