"""Whether a mathematical answer is right, wrong, or in doubt.

spelling     LaTeX, plain text and Unicode as tokens
cursor, expressions, reader      tokens as a value
values, units                    what a value can be
arithmetic, words, sets, relations, equality     whether two values are the same
verdict      the way in: two texts, right or wrong, or a reason for doubt
"""
