"""folder:PATH, the user's own pictures: find, decode, prepare once, and cache on disk.

Pixels are as a viewer shows them: EXIF orientation applied, transparency on white, the first frame
of several. Grey pictures have one channel; if any picture is in colour, all have three.
"""
