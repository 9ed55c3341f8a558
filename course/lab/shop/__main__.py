"""`python -m course.lab.shop` writes data/shop anew and brings data/SHA256SUMS up to date."""

from tqdm.auto import tqdm

from course.lab.data import DATA, write_checksums
from course.lab.files import written_whole
from course.lab.shop.build import files

for name, content in tqdm(files(), unit="file"):
    with written_whole(DATA / "shop" / name) as path:
        path.write_bytes(content)
print(f"{write_checksums()} files in {DATA.name}/SHA256SUMS")
