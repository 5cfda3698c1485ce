"""What `import dgnet_keras` loads. (Which module may import which is in `.importlinter`.)"""

import subprocess
import sys

HEAVY = ("tf_keras", "official", "keras_cv", "matplotlib", "sklearn", "orbit")


CODE = """
import sys
import tensorflow, keras
before = set(sys.modules)
import dgnet_keras
print(*{name.split(".")[0] for name in set(sys.modules) - before})
"""


def test_importing_the_package_adds_no_optional_dependency():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    added = set(done.stdout.split())
    assert not added & set(HEAVY)
    assert "dgnet_keras" in added
