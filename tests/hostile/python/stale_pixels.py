# claims a picture without sending one: what the item before it left must not pass for its own
import os, struct
for f in range(3, 40):
    try:
        os.write(f, struct.pack("<HHIf", 16, 16, 0, 0.0))
    except OSError:
        pass
