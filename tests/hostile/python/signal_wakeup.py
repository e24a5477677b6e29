import signal, faulthandler, os
for f in range(3, 9):
    try: signal.set_wakeup_fd(f, warn_on_full_buffer=False)
    except (OSError, ValueError): pass
    try: os.set_blocking(f, False)
    except OSError: pass
faulthandler.dump_traceback_later(0.1)
while True: pass
