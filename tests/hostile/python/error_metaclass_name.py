class M(type):
    __name__ = property(lambda c: "\x1b[2J\n" * 999)
class E(Exception, metaclass=M): pass
raise E("a\u202eb\x07" + "\ud800" + "x" * 10**6)
