import os
kept = []
while True:
    try:
        f = open(f"f{len(kept)}", "wb")
        f.truncate(16 << 20)
        f.write(bytes(1 << 20))
        f.flush()
        os.unlink(f.name)
        kept.append(f)
    except OSError as error:
        raise SystemExit(f"{len(kept) < 40}")
