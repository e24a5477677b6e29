"""programs.py: what Python programs find, as models write them; which of their pictures counts."""

import textwrap
from pathlib import Path

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


MAKE = {
    "exist_ok": "os.makedirs(d, exist_ok=True)",
    "pathlib": "Path(d).mkdir(parents=True, exist_ok=True)",
    "asked": "if not os.path.exists(d):\n  os.makedirs(d)",
    "asked pathlib": "if not Path(d).is_dir():\n  Path(d).mkdir(parents=True)",
    "removed first": "shutil.rmtree(d, ignore_errors=True); os.makedirs(d, exist_ok=True)",
    "tried": "try:\n  os.mkdir(d)\nexcept OSError:\n  pass",
}


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
@pytest.mark.parametrize("folder", ["/tmp/figs", "/mnt/data/a/b", "~/plots", "../x"])
def test_a_folder_elsewhere_that_a_program_makes_is_its_one_folder(renderer, make, folder):
    code = (
        f"{NEW}import glob, os, shutil\nfrom pathlib import Path\n"
        f"d = os.path.expanduser({folder!r})\n{make}\na, b = os.path.join(d, 'a.png'), d + '/b'\n"
        "dot('blue').save(a)\n"
        "with open(d + '/c.png', 'wb') as file: dot('red').save(file, 'PNG')\n"
        "Path(d, 'n.txt').write_text('x')\n"
        "assert sorted(os.listdir(d)) == ['a.png', 'c.png', 'n.txt'] == sorted(os.listdir('.'))\n"
        "assert sorted(glob.glob(d + '/*.png')) == [a, d + '/c.png']\n"
        "assert [p.name for p in Path(d).glob('n*')] == ['n.txt'] == [f for f in os.listdir(d) "
        "if os.path.getsize(os.path.join(d, f)) == 1]\n"
        "os.rename(a, b); assert os.path.exists(b) and not os.path.exists(a)\n"
        "os.remove(d + '/n.txt'); os.chdir(d); Image.open('b').save('e.png')\n"
        "shutil.rmtree(d)"
    )
    assert colour(renderer, code) == (0, 0, 255)


def test_other_folders_are_refused_aloud(renderer):
    make = "import os\nos.makedirs('/tmp/figs', exist_ok=True); open('/tmp/figs/a', 'w')\n"
    for write in (
        "open('/tmp/a', 'w')",
        "open('/tmp/others/a', 'w')",
        "os.mkdir('/tmp/others')",
        "os.rename('/tmp/figs/a', '/tmp/a')",
        "os.rmdir('/tmp')",
    ):
        error = refuse(renderer, make + write)
        assert error.endswith("(line 3)") and error.startswith(("PermissionError", "FileNotFound"))


USE = {
    "a folder": "with tempfile.TemporaryDirectory() as d: i.save(d + '/a.png'); "
    "j = Image.open(d + '/a.png'); j.load(); open(d + '/t', 'w')",
    "a folder that stays": "d = tempfile.mkdtemp(); open(d + '/t', 'w'); i.save(d + '/a.png'); "
    "j = Image.open(d + '/a.png'); shutil.rmtree(d)",
    "a file": "f = tempfile.NamedTemporaryFile(suffix='.png'); i.save(f); j = Image.open(f.name)",
    "a file that stays": "f = tempfile.NamedTemporaryFile(suffix='.png', delete=False); f.close()\n"
    "i.save(f.name); j = Image.open(f.name); j.load(); os.unlink(f.name)",
    "a descriptor": "h, p = tempfile.mkstemp('.png'); os.close(h); i.save(p); j = Image.open(p)",
    "no name": "f = tempfile.TemporaryFile(); i.save(f, 'PNG'); f.seek(0); j = Image.open(f)",
    "its place": "p = os.path.join(tempfile.gettempdir(), 'a.png'); i.save(p); j = Image.open(p)",
    "copy": "i.save('a.png'); shutil.copy('a.png', 'b.png'); j = Image.open('b.png')",
    "copy2": "i.save('a.png'); shutil.copy2('a.png', 'b.png'); j = Image.open('b.png')",
    "copy to a folder": "os.makedirs('/mnt/data', exist_ok=True); i.save('a.png')\n"
    "shutil.copy('a.png', '/mnt/data/a.png'); p = shutil.copy('a.png', '/mnt/data')\n"
    "j = Image.open(p)",
    "move": "i.save('a.png'); shutil.move('a.png', 'b.png'); j = Image.open('b.png')",
    "move to a folder": "os.mkdir('out'); i.save('a.png'); shutil.move('a.png', 'out')\n"
    "j = Image.open('out/a.png')",
}


@pytest.mark.parametrize("use", USE.values(), ids=USE)
def test_temporary_files_and_copies(renderer, use):
    code = f"{NEW}import os, shutil, tempfile\ni = dot('blue')\n{use}\nj.load(); del i\n"
    assert colour(renderer, f"{code}j.save('z.png')") == (0, 0, 255)


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
    assert drawn("/usr/share/fonts/TTF/DejaVuSerif.ttf") == drawn("DejaVuSerif.ttf")
    secret = "from PIL import ImageFont\nImageFont.truetype('/etc/passwd', 9)"
    assert "Error" in refuse(renderer, secret)


def test_a_dejavu_font_is_found_by_the_path_of_another_system(renderer):
    path = "/usr/share/fonts/truetype/dejavu/DejaVuSerif-Bold.ttf"
    by_path = (
        f"from matplotlib.font_manager import FontProperties, fontManager\np = {path!r}\n"
        "import os\nassert os.path.isfile(p) and open(p, 'rb').read(4) == bytes([0, 1, 0, 0])\n"
        "fontManager.addfont(p)\nfig.suptitle('Growth', fontproperties=FontProperties(fname=p))"
    )
    by_name = "fig.suptitle('Growth', family='DejaVu Serif', weight='bold')"
    assert draw(renderer, PLOT + by_path).tobytes() != draw(renderer, PLOT).tobytes()
    sizes = "; fig.texts[0].set_size(12)"
    path, name = (draw(renderer, PLOT + how + sizes) for how in (by_path, by_name))
    assert path.tobytes() == name.tobytes()
    assert "No such file" in refuse(renderer, "open('/usr/share/fonts/DejaVuNone.ttf')")


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


SHOWN = {
    "closed": "plt.show()\nplt.close()",
    "cleared": "plt.show()\nplt.clf()",
    "its axes cleared": "plt.show()\nax.clear()\nplt.close('all')",
    "by itself": "fig.show()\nplt.close(fig)",
    "in a loop": "plt.ion(); plt.draw(); plt.pause(0.01); plt.close()",
    "before a picture that nobody saw": f"plt.show()\n{NEW}image = dot('red')",
    "before a figure that nobody saw": "plt.show(); plt.close(); plt.plot([1]); plt.close()",
    "in a window": "import matplotlib\nmatplotlib.use('TkAgg')\nplt.show(block=True)",
}


@pytest.mark.parametrize("end", SHOWN.values(), ids=SHOWN)
def test_what_was_shown_counts(renderer, end):
    assert draw(renderer, PLOT + end).tobytes() == draw(renderer, PLOT).tobytes()


def test_the_last_picture_shown_counts_unless_one_was_saved(renderer):
    show = f"{NEW}dot('red').show(title='x'); dot('blue').show()\n"
    assert colour(renderer, show + "img = dot('lime')") == (0, 0, 255)
    assert colour(renderer, PLOT + show) == (0, 0, 255)
    assert draw(renderer, show + PLOT + "plt.show()").tobytes() == draw(renderer, PLOT).tobytes()
    # The notebook's habit: save a picture, then look at it in a figure.
    saved = f"{show}dot('aqua').save('a.png')\n{PLOT}ax.imshow(dot('red')); plt.show()"
    assert colour(renderer, saved) == (0, 255, 255)
    sharp = draw(renderer, PLOT + "fig.savefig('a.png', dpi=200)\nplt.show()")
    assert sharp.size == (400, 200)


BUFFERS = {
    "PNG": "b = io.BytesIO(); fig.savefig(b, format='png')\n"
    "assert Image.open(b).size == (200, 100)",
    "PDF": "b = io.BytesIO(); fig.savefig(b, format='pdf', metadata={'Title': 'x'})",
    "SVG as text": "b = io.StringIO(); fig.savefig(b, format='svg')\n"
    "assert '<svg' in b.getvalue() and '</svg>' in b.getvalue()",
    "SVG as bytes": "b = io.BytesIO(); fig.savefig(b, format='svg', bbox_inches=None)\n"
    "assert '</svg>' in b.getvalue().decode()",
    "SVG in a file": "fig.savefig('d', format='svg'); assert '</svg>' in open('d').read()",
    "pages": "with PdfPages('out/a.pdf') as pages: pages.savefig(fig); fig.clear()",
    "the last page": "p = PdfPages(io.BytesIO()); f = plt.figure(); p.savefig(f); plt.close(f)\n"
    "p.savefig(); p.infodict()['Title'] = 'x'; p.close()",
    "no pyplot": "from matplotlib.figure import Figure\nf = Figure((2, 1))\n"
    "f.subplots().plot([1, 3, 2]); f.savefig('a.pdf')",
}


@pytest.mark.parametrize("write", BUFFERS.values(), ids=BUFFERS)
def test_pages_and_buffers_hold_a_picture(renderer, write):
    code = f"{PLOT}import io\nfrom PIL import Image\n"
    code += f"from matplotlib.backends.backend_pdf import PdfPages\n{write}\nplt.close('all')"
    assert draw(renderer, code).tobytes() == draw(renderer, PLOT).tobytes()


def test_what_is_called_img_is_no_picture_where_a_figure_is_open(renderer):
    array = "import numpy as np\nimg = np.eye(9)\n"
    plain = draw(renderer, PLOT).tobytes()
    assert draw(renderer, PLOT + array).tobytes() == plain
    assert colour(renderer, array) == (255, 255, 255)
    assert draw(renderer, array + "img = (img * 255).astype('uint8')").getpixel((3, 4)) == (0, 0, 0)
    assert draw(renderer, PLOT + NEW + "img = dot('red')").tobytes() == plain


@pytest.mark.parametrize(
    "code, words",
    [
        ("import subprocess\nsubprocess.run(['xdg-open', 'a.png'])", "no other process"),
        ("import os\nos.popen('ls')", "no other process"),
        ("import multiprocessing as m\nm.Process(target=print).start()", "no other process"),
        ("from concurrent.futures import ProcessPoolExecutor as P\nP().submit(abs, 1)", "process"),
        ("import threading\nthreading.Thread(target=print).start()", "thread"),
        ("from urllib.request import urlopen\nurlopen('http://127.0.0.1/a.png')", "the network"),
        ("from urllib.request import urlopen\nurlopen('http://example.com')", "the network"),
        ("import http.client\nhttp.client.HTTPConnection('a.com').request('GET', '/')", "network"),
        ("import socket\nsocket.gethostbyname('example.com')", "the network may not be used"),
        ("import math\nimport tkinter as tk", "window"),
        ("import math\nfrom turtle import *", "window"),
        ("import matplotlib\nimport matplotlib.backends.backend_tkagg", "window"),
    ],
)
def test_an_error_says_what_was_refused(renderer, code, words):
    error = refuse(renderer, code)
    assert words in error and error.endswith("(line 2)"), error
    # A program that goes on after what was refused: a later error has a reason of its own.
    tried = textwrap.indent(code, "    ")
    later = f"import contextlib\nwith contextlib.suppress(Exception):\n{tried}\nopen('no')"
    assert refuse(renderer, later).startswith("FileNotFoundError: [Errno 2]")


@pytest.mark.parametrize(
    "code, error",
    [
        ("from PIL import nothing", "ImportError: cannot import name 'nothing' from 'PIL' (PIL/"),
        ("import os\nopen(os.path.join(os.getcwd(), 'a.csv'))", "No such file or directory: 'a."),
        ("import os\nopen(os.path.expanduser('~/a.csv'))", "No such file or directory: 'a.csv'"),
        ("import os, sys\nsys.exit('no ' + os.getcwd())", "SystemExit: no . (line 2)"),
        ("import os, sys\nraise ValueError(os.__file__, sys.executable)", "('os.py', 'python"),
        ("raise OSError(__import__('os').environ['FONTCONFIG_FILE'])", "OSError: fonts.conf (li"),
        ("open('/usr/share/fonts/a')", "/usr/share/fonts/a"),
    ],
)
def test_an_error_names_no_folder_of_ours(renderer, code, error):
    said = refuse(renderer, code)
    packages = str(Path(pytest.__file__).parent.parent)
    assert error in said and str(renderer.scratch) not in said and packages not in said


@pytest.mark.parametrize("end, line", [("", 4), ("\n# end\n", 5), ("plt.show()\nx = 1", 4)])
def test_an_error_of_an_open_figure_has_a_line(renderer, end, line):
    code = f"{PLOT}plt.title(r'$\\frac{{1$')\n{end or 'x = 1'}"
    assert "ParseSyntaxException" in refuse(renderer, code)
    assert refuse(renderer, code).endswith(f"(line {line})")
