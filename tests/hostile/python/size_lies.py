# a picture object whose size is not that of its rows
from PIL import Image
class Liar(Image.Image):
    @property
    def size(self):
        return (2000, 2000)
    def tobytes(self, *a):
        return b"\1\2\3"
    def convert(self, *a, **k):
        return self
    def copy(self):
        return self
    mode = "RGB"
    has_transparency_data = False
img = Liar()
