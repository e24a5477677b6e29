import os
for f in range(3, 40):
    for size in (1 << 40, 1 << 24):
        try:
            os.ftruncate(f, size)
        except OSError:
            pass
while True:
    for f in range(3, 40):
        try:
            os.pwrite(f, bytes(1 << 20), 0)
        except OSError:
            pass
