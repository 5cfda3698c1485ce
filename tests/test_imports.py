"""What `import dgnet_keras` loads. (Which module may import which is in `.importlinter`.)"""

import subprocess
import sys

HEAVY = ("tf_keras", "official", "keras_cv", "matplotlib", "sklearn", "orbit")


def loaded_by(statement):
    code = f"import sys; {statement}; print(' '.join({{m.split('.')[0] for m in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_the_package_adds_no_optional_dependency():
    added = loaded_by("import tensorflow, keras, dgnet_keras")
    added -= loaded_by("import tensorflow, keras")
    assert not added & set(HEAVY)
    assert "dgnet_keras" in added
