"""programs.py: what Python programs find, as models write them; which of their pictures counts."""

import pytest
from helpers_render import draw, pillow, refuse

from render import Renderer

NEW = "from PIL import Image\nnew = lambda c: Image.new('RGB', (9, 9), c)\n"
NEW += "def dot(c):\n  i = new(c); i.putpixel((0, 0), (1, 2, 3)); return i\n"
PLOT = (
    "import matplotlib.pyplot as plt\nfig, ax = plt.subplots(figsize=(2, 1)); ax.plot([1, 3, 2])\n"
)


@pytest.fixture(scope="module")
def renderer():
    with Renderer(workers=2, timeout=60) as renderer:
        yield renderer


def colour(renderer, code):
    return draw(renderer, code).getpixel((4, 4))


@pytest.mark.parametrize("name", ["/mnt/data/a.png", "/tmp/a.png", "../a.png", "/home/me/x/a.jpg"])
def test_a_name_elsewhere_becomes_a_file_in_the_one_folder(renderer, name):
    base = name.rpartition("/")[2]
    code = f"{NEW}import os\ndot('blue').save({name!r})\n"
    code += f"assert os.listdir('.') == [{base!r}] and not os.path.exists({name!r})\n"
    assert colour(renderer, code)[2] > 240


def test_names_elsewhere_leave_nothing_there(renderer, tmp_path):
    tmp_path.chmod(0o777)
    draw(renderer, pillow((1, 2, 3)) + f"img.save('{tmp_path}/a.png')")
    draw(renderer, f"{PLOT}fig.savefig('{tmp_path}/b.png')")
    assert "PermissionError" in refuse(renderer, f"open('{tmp_path}/c', 'w')")
    assert "PermissionError" in refuse(renderer, f"import os; os.mkdir('{tmp_path}/d')")
    assert "PermissionError" in refuse(renderer, f"import os; os.makedirs('{tmp_path}/e/f')")
    assert list(tmp_path.iterdir()) == []


def test_folders_of_a_program_are_its_one_folder(renderer):
    code = (
        "import os, pathlib\nos.makedirs('out/deep', exist_ok=True); os.mkdir('more')\n"
        "pathlib.Path('p/q').mkdir(parents=True, exist_ok=True)\n"
        "os.makedirs('/mnt/data', exist_ok=True)\n"
        "assert os.path.isdir('out') and not os.path.isdir('other')\n"
        "with open('out/deep/a.csv', 'w') as f: f.write('1,2')\n"
        "assert open(os.path.join(os.getcwd(), 'out', 'deep', 'a.csv')).read() == '1,2'\n"
        "pathlib.Path('p/q/b.txt').write_text('x')\n"
        "assert sorted(os.listdir('p')) == ['a.csv', 'b.txt']\n"
        "os.remove('out/deep/a.csv'); os.chdir('out')\n"
    )
    assert colour(renderer, code + NEW + "dot('lime').save('out/c.png')") == (0, 255, 0)


@pytest.mark.parametrize(
    "write",
    [
        "rows = bytes([1, 2, 3]) + bytes([0, 0, 255]) * 80\n"
        "open('out/p.ppm', 'wb').write(b'P6 9 9 255 ' + rows)",
        "import zlib, struct\n"
        "def chunk(k, d): return struct.pack('>I', len(d)) + k + d + struct.pack('>I', "
        "zlib.crc32(k + d))\n"
        "rows = b''.join(b'\\0' + bytes([i, 0, 255]) * 9 for i in range(9))\n"
        "open('out/a.png', 'wb').write(b'\\x89PNG\\r\\n\\x1a\\n' + chunk(b'IHDR', struct.pack("
        "'>IIBBBBB', 9, 9, 8, 2, 0, 0, 0)) + chunk(b'IDAT', zlib.compress(rows)) + "
        "chunk(b'IEND', b''))",
    ],
)
def test_a_picture_that_a_program_wrote_itself_is_found(renderer, write):
    code = f"import os\nos.makedirs('out')\nopen('out/notes.txt', 'w').write('x')\n{write}\n"
    assert colour(renderer, code)[2] == 255
    assert "no picture" in refuse(renderer, "open('notes.txt', 'w').write('x')")


@pytest.mark.parametrize(
    "font",
    ["arial.ttf", "Arial.ttf", "Helvetica", "/usr/share/fonts/truetype/liberation/Liberation.ttf"],
)
def test_fonts_that_are_not_there_are_dejavu(renderer, font):
    def drawn(name):
        return draw(
            renderer,
            "from PIL import Image, ImageDraw, ImageFont\n"
            "img = Image.new('RGB', (90, 30), 'white')\n"
            f"font = ImageFont.truetype({name!r}, 18)\n"
            "ImageDraw.Draw(img).text((2, 2), 'Sales 42', fill='black', font=font)",
        ).tobytes()

    assert drawn(font) == drawn("DejaVuSans.ttf") != drawn("arialbd.ttf")
    assert drawn("arialbd.ttf") == drawn("DejaVuSans-Bold.ttf")
    assert drawn("C:/Windows/Fonts/times.ttf") == drawn("DejaVuSerif.ttf")
    assert drawn("cour.ttf") != drawn("CourierNew.ttf") == drawn("DejaVuSansMono.ttf")
    secret = "from PIL import ImageFont\nImageFont.truetype('/etc/passwd', 9)"
    assert "Error" in refuse(renderer, secret)


def test_matplotlib_looks_for_fonts_in_silence(renderer):
    look = (
        "import io, sys, matplotlib.pyplot as plt\nsys.stderr = io.StringIO()\n"
        "plt.rcParams['font.family'] = 'sans-serif'\n"
        "plt.rcParams['font.sans-serif'] = ['Arial', 'Helvetica']\n"
        "plt.figure(figsize=(2, 1)).text(0.1, 0.4, 'Sales 42', family=['Roboto', 'Futura'])\n"
        "plt.title('x'); plt.gcf().canvas.draw()\n"
        "assert sys.stderr.getvalue() == '', sys.stderr.getvalue()\n"
    )
    # It draws, and what it asserts inside holds: a word on stderr would be its error.
    assert draw(renderer, look).size == (200, 100)


@pytest.mark.parametrize("module", ["pandas", "seaborn", "torch", "cv2.typing", "nowhere"])
def test_a_missing_module_is_named_in_one_line(renderer, module):
    name = module.partition(".")[0]
    error = f"ModuleNotFoundError: No module named '{name}' (line 2)"
    assert refuse(renderer, f"import math\nimport {module}") == error
    code = f"{NEW}try:\n  import {module}\nexcept ImportError:\n  img = dot('red')"
    assert colour(renderer, code) == (255, 0, 0)


def test_vectors_do_not_end_a_program(renderer):
    plain = draw(renderer, PLOT + "fig.savefig('a.png')").tobytes()
    for name in ("a.pdf", "a.svg", "b.eps", "c.ps"):
        both = f"{PLOT}fig.savefig('a.png'); plt.savefig({name!r}); plt.close()"
        assert draw(renderer, both).tobytes() == plain
        assert draw(renderer, f"{PLOT}fig.savefig({name!r}); plt.close()").tobytes() == plain
        assert colour(renderer, f"{NEW}i = dot('red'); i.save('a.png'); i.save({name!r})")[0] == 255
    pages = (
        "from matplotlib.backends.backend_pdf import PdfPages\nimport io\n"
        "fig.savefig(io.BytesIO(), format='pdf', metadata={'Title': 'x'})\n"
        "fig.savefig('d', format='svg', bbox_inches=None)\nplt.close()"
    )
    assert draw(renderer, PLOT + pages).tobytes() == plain


def test_windows_and_buffers_are_harmless(renderer):
    plain = draw(renderer, PLOT).tobytes()
    window = "import matplotlib\nmatplotlib.use('TkAgg')\n"
    assert draw(renderer, window + PLOT + "plt.show()").tobytes() == plain
    buffer = "import io\nb = io.BytesIO(); fig.savefig(b, format='png'); plt.close()\n"
    assert draw(renderer, PLOT + buffer).tobytes() == plain
    shown = f"{NEW}i = dot('red'); i.show(); b = __import__('io').BytesIO(); i.save(b, 'PNG')\n"
    assert colour(renderer, shown) == (255, 0, 0)


def test_what_is_called_img_is_no_picture_where_a_figure_is_open(renderer):
    array = "import numpy as np\nimg = np.eye(9)\n"
    plain = draw(renderer, PLOT).tobytes()
    assert draw(renderer, PLOT + array).tobytes() == plain
    assert colour(renderer, array) == (255, 255, 255)
    assert draw(renderer, array + "img = (img * 255).astype('uint8')").getpixel((3, 4)) == (0, 0, 0)
    assert draw(renderer, PLOT + NEW + "img = dot('red')").tobytes() == plain
