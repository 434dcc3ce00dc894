import subprocess
import sys

import pytest


@pytest.mark.parametrize("redirection", ["", "2>&-"])
def test_tensorflow_is_imported_in_silence_even_if_nobody_listens(redirection):
    program = "from elev_ssl_jax.runtime import quiet; quiet.import_tensorflow(); print('done')"
    command = f'"{sys.executable}" -c "{program}" {redirection}'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.returncode == 0
    assert (done.stdout, done.stderr) == ("done\n", "")
