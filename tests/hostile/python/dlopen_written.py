# a library of its own making
import ctypes
open("a.so", "wb").write(open(ctypes.__file__.replace("ctypes/__init__.py", "os.py"), "rb").read())
ctypes.CDLL("./a.so")
