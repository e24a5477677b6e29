import os
from PIL import Image
img = Image.linear_gradient("L")
os.chdir("/")
img.save("tmp/../dev/shm/pwned.png")
