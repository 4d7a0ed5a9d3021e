"""A little world whose physics make its sound: clips of a known offset without a single download.

`motion` moves objects by closed formulas, `world` draws scenes, `sound` and `picture` render one scene each to a
waveform and to frames, `render` writes clips with their sidecars. Lengths are in frame widths, x to the right and
y downwards from the upper left corner; times are in seconds.
"""
