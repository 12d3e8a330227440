"""The small world of abc-mini: scenes of one or two emoji on a coloured background."""
