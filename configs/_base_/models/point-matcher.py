# Points by features; the backbone comes from another file.
model = dict(type='mmdiffrep.PointMatcher', metric='cosine')
